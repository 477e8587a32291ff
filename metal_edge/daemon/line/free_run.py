"""Free run: the newest picture wins, and the model does not wait for all the rest.

Shortly before the model is done with one picture, the next is fetched, checked and resized. The
model is given it at once, and the deciding thread tells the verdict on the first meanwhile. That
is all that runs ahead: what is to be done between two pictures, and the end, come with none in
hand.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count

from metal_edge.daemon.deciding.decision import Evidence, decide
from metal_edge.daemon.line.grabber import Outcome
from metal_edge.daemon.line.inference import Found, InferenceThread, Look
from metal_edge.daemon.line.inspector import Inspector
from metal_edge.domain import Trigger

# The next picture is asked for so long before the model is expected to be done: time to bring it
# from the camera's thread, and as much again to prepare it. It can be that much older than the
# newest one.
LEAD_NS = 1_500_000
FETCH_S = LEAD_NS / 2e9
# Expected from the quickest of so many: asked too late, the model would wait.
USUAL = 8


@dataclass(frozen=True, slots=True, eq=False)
class _InHand:
    """A picture, or a silence, that must get its verdict.

    Attributes:
        look: what the model is asked; None where the evidence settles it.
        dropped: pictures before it that nobody had time for.
    """

    trigger: Trigger
    evidence: Evidence
    look: Look | None
    dropped: int


def run_free(line: Inspector) -> None:
    """A picture, or a silence of `timeout_s`, is an event of its own."""
    model = InferenceThread(line.parts.clock, line.settings.runtime.realtime_priority)
    model.start()
    try:
        _FreeRun(line, model).run()
    finally:
        model.close()


class _FreeRun:
    def __init__(self, line: Inspector, model: InferenceThread) -> None:
        self._line = line
        self._worker = line.workers[0]
        self._model = model
        self._clock = line.parts.clock
        self._numbers = count(1)
        self._last_seq: int | None = None
        self._began_ns = 0  # the model, with what it is at
        self._took_ns: deque[int] = deque([0], maxlen=USUAL)
        self._kept: Outcome | None = None  # of the camera, not in hand yet

    def run(self) -> None:
        """Until told to stop, or until the pictures end."""
        part = self._begun(self._wait())
        while part is not None:
            found, following = self._found(part)
            following = self._begun(following or self._at_hand())
            self._tell(part, found)
            if following is None:
                self._line.between_parts()
                following = self._begun(self._wait())
            else:
                self._line.breathe()
            part = following

    def _wait(self) -> _InHand | None:
        """The next picture, whenever it comes; None at the end."""
        asked_ns = self._clock.mono_ns()
        outcome, self._kept = self._kept, None
        if outcome is None:
            outcome = self._line.next_outcome(self._line.timeout_s)
        if outcome is None or self._line.stopping() or self._line.ended(outcome):
            return None
        return self._prepared(outcome, asked_ns)

    def _at_hand(self) -> _InHand | None:
        """The next picture if it is there, unless something is to be done before."""
        if self._kept is not None or self._line.wanted_between_parts():
            return None
        outcome = self._line.outcome_at_hand()
        if outcome is None:
            return None
        if outcome.frame is None:  # nothing to hurry for
            self._kept = outcome
            return None
        return self._prepared(outcome, outcome.t_mono_ns)

    def _prepared(self, outcome: Outcome, asked_ns: int) -> _InHand:
        """Numbered, checked, and resized for the model: from here on it gets a verdict."""
        frame, dropped = outcome.frame, 0
        if frame is not None:
            if self._last_seq is not None:
                dropped = max(0, frame.seq - self._last_seq - 1)
            self._last_seq = frame.seq
        start_ns = asked_ns if frame is None else frame.t_mono_ns
        trigger = self._line.own_trigger(f"free-{next(self._numbers)}", start_ns)
        look = self._worker.look(self._line.seen(outcome), trigger.deadline_mono_ns)
        return _InHand(trigger, look.evidence, None if look.images is None else look, dropped)

    def _begun(self, part: _InHand | None) -> _InHand | None:
        """The same, with the model at it."""
        if part is not None and part.look is not None:
            self._began_ns = self._clock.mono_ns()
            self._model.begin(part.look)
        return part

    def _found(self, part: _InHand) -> tuple[Found | None, _InHand | None]:
        """What the model says, if it is asked; and the next picture, if it was there in time.

        Nothing else is done meanwhile: a model that hangs must stop heartbeat and watchdog.
        """
        if part.look is None:
            if part.evidence.frame is not None:
                self._line.ask_ahead()
            return None, None
        following = None
        ask_ns = self._began_ns + min(self._took_ns) - LEAD_NS
        found = self._model.found_within(max(0, ask_ns - self._clock.mono_ns()) / 1e9)
        self._line.ask_ahead()
        if found is None:
            found = self._model.found_within(FETCH_S)
        if found is None:
            following = self._at_hand()
            found = self._model.found()
        self._took_ns.append(found.done_ns - self._began_ns)
        return found, following

    def _tell(self, part: _InHand, found: Found | None) -> None:
        """Exactly one verdict on each picture in hand."""
        evidence = part.evidence
        if part.look is not None and found is not None:
            evidence = self._worker.assessed(part.look, found)
        rules = self._worker.view.rules
        decision = decide(part.trigger, evidence, rules, self._clock.mono_ns())
        # Together with its verdict, or a heartbeat in between would not add up.
        self._line.frames_dropped += part.dropped
        self._line.report(decision, [evidence])
        if evidence.frame is None:
            self._line.rest()  # what fails at once was not asked for ahead
