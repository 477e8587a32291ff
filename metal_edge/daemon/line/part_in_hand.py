"""One part before the cameras: what each view has said of it so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.deciding.decision import Evidence, Reason, decide, join
from metal_edge.daemon.line.grabber import Shot
from metal_edge.daemon.line.view_worker import ViewWorker
from metal_edge.domain import Decision, Trigger, Verdict


class PartInHand:
    """Asks every view at once, and examines them as they come: a stalled one holds up none.

    Args:
        trigger: what wants the verdict.
        workers: one per view.
        timeouts_s: how long each camera may take; the deadline ends it earlier.
        clock: of the line.
    """

    def __init__(
        self,
        trigger: Trigger,
        workers: Sequence[ViewWorker],
        timeouts_s: Sequence[float],
        clock: Clock,
    ) -> None:
        self._trigger = trigger
        self._workers = workers
        self._timeouts_s = timeouts_s
        self._clock = clock
        self._ends_ns: list[int] = []
        self._evidence: dict[int, Evidence] = {}
        self._said: dict[int, Decision] = {}

    @property
    def complete(self) -> bool:
        """Every view has said something, or has been given up."""
        return len(self._said) == len(self._workers)

    @property
    def next_end_ns(self) -> int:
        """When the next view will be given up."""
        return min(end for place, end in enumerate(self._ends_ns) if place not in self._said)

    @property
    def evidence(self) -> list[Evidence]:
        """Of each view, in their order."""
        return [self._evidence[place] for place in sorted(self._evidence)]

    def ask(self, number: int) -> None:
        """Triggers all cameras."""
        asked_ns = self._clock.mono_ns()
        trigger = self._trigger
        left_s = (trigger.deadline_mono_ns - asked_ns) / 1e9
        for worker, timeout_s in zip(self._workers, self._timeouts_s, strict=True):
            patience_s = min(left_s, timeout_s)
            shot = Shot(
                number,
                trigger.part_id,
                patience_s,
                trigger=True,
                expose_by_ns=trigger.expose_by_mono_ns,
            )
            worker.ask(shot, asked_ns)
            self._ends_ns.append(asked_ns + round(patience_s * 1e9))

    def examine_next(self) -> bool:
        """Examines the first view that has something; False when none has."""
        for place, worker in enumerate(self._workers):
            if place not in self._said and (outcome := worker.outcome()) is not None:
                deadline_ns = self._trigger.deadline_mono_ns
                self._note(place, worker.examine(worker.seen(outcome), deadline_ns))
                return True
        return False

    def give_up(self, stopping: bool) -> None:
        """No longer waits for views whose time is over; when `stopping`, for none."""
        now_ns = self._clock.mono_ns()
        fault = Reason.SHUTTING_DOWN if stopping else Reason.NO_FRAME
        for place, worker in enumerate(self._workers):
            if place not in self._said and (stopping or now_ns >= self._ends_ns[place]):
                self._note(place, worker.silent(fault))

    def decide(self) -> Decision:
        """The verdict, once complete."""
        now_ns = self._clock.mono_ns()
        joined = self._join([self._said[place] for place in sorted(self._said)], now_ns)
        if joined.verdict is not Verdict.PASS:
            return joined
        # Each view spoke when it was examined; what was fresh then may be too old by now.
        return self._join([self._decide(place, now_ns) for place in sorted(self._said)], now_ns)

    def _note(self, place: int, evidence: Evidence) -> None:
        if len(self._workers) > 1 and evidence.fault is Reason.NO_FRAME:
            evidence = replace(evidence, fault=Reason.VIEW_MISSING)
        self._evidence[place] = evidence
        self._said[place] = self._decide(place, self._clock.mono_ns())

    def _decide(self, place: int, now_ns: int) -> Decision:
        rules = self._workers[place].view.rules
        return decide(self._trigger, self._evidence[place], rules, now_ns)

    def _join(self, decisions: list[Decision], now_ns: int) -> Decision:
        if len(self._workers) == 1:
            return decisions[0]
        expected = [worker.view.camera_id for worker in self._workers]
        return join(self._trigger, decisions, expected, now_ns)
