"""Looks at one part after another and answers for each: the deciding thread's tools.

Cameras have threads of their own, so nothing that a camera does holds this thread up; heartbeat
and watchdog are sent from here and from nowhere else, so they stop when it stops.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from metal_edge.daemon.cameras import CameraError, EndOfStreamError
from metal_edge.daemon.deciding.decision import Evidence, Reason, decide
from metal_edge.daemon.deciding.transitions import Event, State
from metal_edge.daemon.line.grabber import Outcome, Shot
from metal_edge.daemon.line.heart import Heart, Vitals
from metal_edge.daemon.line.model import Models
from metal_edge.daemon.line.part_in_hand import PartInHand
from metal_edge.daemon.line.parts import Parts
from metal_edge.daemon.line.reject_gate import make_trigger
from metal_edge.daemon.line.requests import Requests
from metal_edge.daemon.line.state import LineState
from metal_edge.daemon.line.view_worker import ViewWorker
from metal_edge.daemon.records.evidence_pictures import Shown, shown_by
from metal_edge.domain import Decision, Trigger
from metal_edge.settings import CameraMode

log = logging.getLogger(__name__)

# The stop flag is looked at this often: a signal handler may set it, but not ring the bell.
SLICE_NS = 100_000_000
# After a stop, the part in hand gets this long to come before the camera.
GRACE_NS = 500_000_000
# While a view is in trouble and no part comes, it is looked at this often.
LOOK_AGAIN_NS = 1_000_000_000
# A camera that gives neither frame nor error for so long after its time does not return.
STUCK_NS = 500_000_000


class Inspector:
    """The cameras and models of a line, its heart, and the answers it gives.

    Args:
        parts: of the line.
        state: of the line.
        requests: done between two parts.
    """

    def __init__(self, parts: Parts, state: LineState, requests: Requests) -> None:
        self.parts = parts
        self.state = state
        self.models: Models = dict(parts.models)
        self.settings = parts.settings  # of which `decision` and `gate` may change
        triggered = parts.settings.camera.mode is CameraMode.TRIGGERED
        self.workers = tuple(
            ViewWorker(view, parts.clock, parts.bell, triggered) for view in parts.views
        )
        self.frames_dropped = 0
        self.triggers_lost = 0
        self._requests = requests
        self._clock = parts.clock
        self._shots = count(1)
        self._asked: tuple[int, int] | None = None  # number and limit of a shot not waited for yet
        self._stop_seen_ns: int | None = None
        self._looked_ns = 0
        cameras = (parts.settings.camera, *parts.settings.views)
        self._timeouts_s = tuple(camera.timeout_s for camera in cameras)
        self.heart = Heart(
            parts.settings.heartbeat_hz,
            self._vitals,
            state,
            lambda: self.models[parts.views[0].camera_id].identity,
            publisher=parts.publisher,
            reporter=parts.reporter,
            queue=parts.queue,
            notifier=parts.notifier,
            clock=parts.clock,
        )

    def start(self) -> None:
        """Starts the cameras' threads."""
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """Ends the cameras' threads; the cameras themselves belong to whoever opened them."""
        for worker in self.workers:
            worker.close()

    @property
    def timeout_s(self) -> float:
        """How long the first camera may take."""
        return self._timeouts_s[0]

    def stopping(self) -> bool:
        """True once the line was asked to stop."""
        return self.parts.stop.requested()

    def breathe(self) -> None:
        """Broker, heartbeat, watchdog. Often called; does little until the next beat is due."""
        self.parts.publisher.pump()
        self.heart.beat()

    def between_parts(self) -> None:
        """Breathes, and does what other threads asked for. No part is in hand."""
        if self._requests.mended():
            for worker in self.workers:
                worker.forget()
        self.breathe()
        while (request := self._requests.next_models()) is not None:
            models, done = request
            before, self.models = self.models, models
            self.state.tell(Event.CHANGE)
            for worker in self.workers:
                worker.serve(models[worker.view.camera_id])
            self.parts.reporter.identity = self.models[self.workers[0].view.camera_id].identity
            self.state.tell(Event.CHANGED)
            self._requests.hand_back(done, before)
            self.heart.hurry()
            self.breathe()

    def wait(self, until_ns: int | None = None) -> None:
        """Until the bell rings, the next beat is due, or `until_ns`; never for long."""
        now_ns = self._clock.mono_ns()
        end_ns = min(now_ns + SLICE_NS, self.heart.due_ns)
        if until_ns is not None:
            end_ns = min(end_ns, until_ns)
        self.parts.bell.wait((end_ns - now_ns) / 1e9)

    def rest(self) -> None:
        """One beat's time: what fails at once must not turn the loop into a storm."""
        until_ns = self._clock.mono_ns() + self.heart.period_ns
        while self._clock.mono_ns() < until_ns and not self.stopping():
            self.wait(until_ns)
            self.between_parts()

    def ended(self, outcome: Outcome) -> bool:
        """True when the camera has no more pictures; told."""
        if isinstance(outcome.error, EndOfStreamError):
            log.info("%s; stopping", outcome.error.what)
            return True
        return False

    def inspect(self, trigger: Trigger) -> None:
        """Exactly one verdict on one trigger of the queue."""
        if self.state.now is State.DISARMED:
            self.answer(trigger, Reason.DISARMED)
            return
        now_ns, expose_by_ns = self._clock.mono_ns(), trigger.expose_by_mono_ns
        if now_ns >= trigger.deadline_mono_ns:
            self.answer(trigger, Reason.DEADLINE_MISSED)
            return
        if expose_by_ns is not None and now_ns > expose_by_ns:
            # It waited behind other parts, and a picture would show the one that follows.
            self.answer(trigger, Reason.STALE_FRAME)
            return
        part = PartInHand(trigger, self.workers, self._timeouts_s, self._clock)
        part.ask(next(self._shots))
        while True:
            examined = part.examine_next()
            if not examined:
                part.give_up(self._stop_is_due(self._clock.mono_ns()))
            if part.complete:
                break
            if not examined:
                self.wait(part.next_end_ns)
            self.breathe()
        self.report(part.decide(), part.evidence)

    def look_again(self) -> None:
        """A picture for nobody, while a view is in trouble and no part comes.

        Otherwise only a part could show that a camera is back, and a PLC that has stopped its
        line sends none to a daemon that says that it is not healthy. A part that comes ends the
        look, and so does a change of models. Not for cameras of files: the picture would be
        missing for the next part.
        """
        now_ns = self._clock.mono_ns()
        if now_ns - self._looked_ns < LOOK_AGAIN_NS or not self._vitals().faults:
            return
        if self.state.now is State.DISARMED or not all(w.view.camera.live for w in self.workers):
            return
        self._looked_ns = now_ns
        until_ns = now_ns + round(max(self._timeouts_s) * 1e9)
        nobody = Trigger("look", None, now_ns, until_ns)
        part = PartInHand(nobody, self.workers, self._timeouts_s, self._clock)
        part.ask(next(self._shots))
        while not (part.complete or self._wanted_elsewhere()):
            if not part.examine_next():
                part.give_up(stopping=False)
            if not part.complete:
                self.wait(part.next_end_ns)
            self.breathe()

    def wanted_between_parts(self) -> bool:
        """True when something is to be done that no part may be in hand for, or at the end."""
        return self._requests.waiting() or self.stopping()

    def _wanted_elsewhere(self) -> bool:
        return len(self.parts.queue) > 0 or self.wanted_between_parts()

    def _stop_is_due(self, now_ns: int) -> bool:
        if not self.stopping():
            return False
        if self._stop_seen_ns is None:
            self._stop_seen_ns = now_ns
        return now_ns - self._stop_seen_ns > GRACE_NS

    def _ask_next(self, timeout_s: float) -> tuple[int, int]:
        """Asks the only camera for its next frame: the shot's number, and when to give it up."""
        asked_ns = self._clock.mono_ns()
        number = next(self._shots)
        self.workers[0].ask(Shot(number, None, timeout_s, trigger=False), asked_ns)
        return number, asked_ns + round(max(timeout_s, self.timeout_s) * 1e9) + STUCK_NS

    def next_outcome(self, timeout_s: float) -> Outcome | None:
        """The only camera's next frame or error, whenever it comes; None when told to stop."""
        number, end_ns = self._asked or self._ask_next(timeout_s)
        self._asked = None
        worker = self.workers[0]
        while True:
            outcome = worker.outcome()
            if outcome is not None:
                return outcome
            now_ns = self._clock.mono_ns()
            if now_ns >= end_ns:
                error = CameraError("the camera does not return from a grab", "restart it")
                return Outcome(number, None, error, now_ns)
            if self.stopping():
                return None
            self.between_parts()
            self.wait(end_ns)

    def ask_ahead(self) -> None:
        """Asks for the frame that `next_outcome` will want, unless that is done already."""
        if self._asked is None:
            self._asked = self._ask_next(self.timeout_s)

    def outcome_at_hand(self) -> Outcome | None:
        """What was asked for ahead, if it is there."""
        outcome = None if self._asked is None else self.workers[0].outcome()
        if outcome is not None:
            self._asked = None
        return outcome

    def last_outcome(self) -> Outcome | None:
        """Of the shot that `next_outcome` gave up when it was told to stop."""
        return self.workers[0].outcome()

    def ask_once_more(self) -> None:
        """Asks the only camera for what it already has."""
        shot = Shot(next(self._shots), None, 0.0, trigger=False)
        self.workers[0].ask(shot, self._clock.mono_ns())

    def judge(self, trigger: Trigger, outcome: Outcome, fault: Reason | None = None) -> None:
        """The verdict on what the only camera gave; `unknown` with a `fault` known before."""
        worker = self.workers[0]
        evidence = worker.examine(self.seen(outcome, fault), trigger.deadline_mono_ns)
        decision = decide(trigger, evidence, worker.view.rules, self._clock.mono_ns())
        self.report(decision, [evidence])

    def seen(self, outcome: Outcome, fault: Reason | None = None) -> Evidence:
        """What the only camera gave; with a `fault`, which a disarmed line has, not looked at."""
        if fault is None and self.state.now is State.DISARMED:
            fault = Reason.DISARMED
        evidence = self.workers[0].seen(outcome)
        return evidence if fault is None else replace(evidence, fault=fault)

    def own_trigger(self, trigger_id: str, t_mono_ns: int) -> Trigger:
        """Of a part that no command announced."""
        times, gate = self.settings.decision, self.settings.gate
        return make_trigger(trigger_id, None, t_mono_ns, times.deadline_ms, gate)

    def answer(self, trigger: Trigger, fault: Reason) -> None:
        """`unknown`, without a look."""
        camera_id = self.workers[0].view.camera_id if len(self.workers) == 1 else None
        evidence = Evidence(fault=fault, camera_id=camera_id)
        rules = self.workers[0].view.rules
        self.report(decide(trigger, evidence, rules, self._clock.mono_ns()), [])

    def report(self, decision: Decision, evidence: Sequence[Evidence]) -> None:
        """Tells the world; bookkeeping comes after that."""
        release = self.state.release
        wanted = self._requests.wants_pictures() and any(e.frame is not None for e in evidence)
        # Looked at twice: the note that goes before the word may have to wait for a disk.
        told = self.parts.reporter.report(
            release(decision), self._shown(evidence), keep=wanted, last_look=release
        )
        if wanted:
            self._requests.taken(told)
        self.parts.publisher.pump()

    def _shown(self, evidence: Sequence[Evidence]) -> list[Shown]:
        """What there is to be kept of a part: one piece of evidence per view, or none at all."""
        views = [worker.view for worker in self.workers]
        found = [
            shown_by(one, view.bundle.manifest.preprocess.crop)
            for one, view in zip(evidence, views, strict=False)
        ]
        return [shown for shown in found if shown is not None]

    def _vitals(self) -> Vitals:
        """How this thread and its cameras are doing."""
        several = len(self.workers) > 1

        def named(worker: ViewWorker, problems: Sequence[str]) -> list[str]:
            return [f"{p}: {worker.view.camera_id}" if several else p for p in problems]

        faults = [fault for worker in self.workers for fault in named(worker, worker.faults())]
        notes = [note for worker in self.workers for note in named(worker, worker.notes())]
        frames = [worker.last_frame_ns for worker in self.workers]
        known = [t for t in frames if t is not None]
        oldest = min(known) if len(known) == len(frames) else None
        return Vitals(
            faults=tuple(faults),
            last_frame_ns=oldest,
            frames_dropped=self.frames_dropped,
            triggers_lost=self.triggers_lost,
            notes=(*notes, *self.parts.notes()),
        )
