"""What makes a part: a command, a new picture, or an exposure of a wired trigger.

Each function runs in the deciding thread until the line is told to stop or its pictures end.
"""

from __future__ import annotations

import logging
from itertools import count

from metal_edge.daemon.cameras import (
    CameraTimeoutError,
    FrameOverflowError,
    TornFrameError,
)
from metal_edge.daemon.cameras.exposures import ExposureCounter
from metal_edge.daemon.deciding.decision import Reason
from metal_edge.daemon.line.grabber import Outcome
from metal_edge.daemon.line.inspector import GRACE_NS, SLICE_NS, Inspector
from metal_edge.domain import Trigger

log = logging.getLogger(__name__)


def run_triggered(line: Inspector) -> None:
    """One verdict per trigger of the queue, in order."""
    while not line.stopping():
        trigger = line.parts.queue.take()
        if trigger is not None:
            line.inspect(trigger)
        line.between_parts()
        if trigger is None:
            line.look_again()
            line.wait()


def run_hardware(line: Inspector) -> None:
    """One verdict per exposure: of each frame, and of each gap in the camera's counter.

    Silence is no event: no part came. A verdict that belongs to no exposure would shift all
    that follow, for a receiver that counts; so a broken camera holds the line, and says no more.
    """
    mode = _Hardware(line)
    while True:
        # Short, so that at the end no frame is on its way that nobody waits for.
        outcome = line.next_outcome(min(line.timeout_s, SLICE_NS / 1e9))
        if outcome is None:
            mode.drain()
            return
        if line.ended(outcome):
            return
        mode.handle(outcome)
        line.between_parts()


class _Hardware:
    """Numbers exposures and notices those that gave no frame."""

    def __init__(self, line: Inspector) -> None:
        self._line = line
        self._counter = ExposureCounter()
        self._numbers = count(1)

    def handle(self, outcome: Outcome) -> None:
        """One outcome of a grab."""
        if self._is_exposure(outcome):
            self._answer(outcome, None)
        elif isinstance(outcome.error, CameraTimeoutError):
            # Or a PLC that stopped its line would never send the part that shows it is back.
            self._line.workers[0].there()
        elif isinstance(outcome.error, FrameOverflowError):
            log.error("%s", outcome.error)  # the gap in the counter brings the verdicts
        else:
            self._line.workers[0].seen(outcome)
            self._counter.interrupted()
            self._line.rest()

    def drain(self) -> None:
        """Answers the exposures that are in the camera when the line stops."""
        clock, end_ns = self._line.parts.clock, self._line.parts.clock.mono_ns() + GRACE_NS
        while clock.mono_ns() < end_ns:
            outcome = self._line.last_outcome()
            if outcome is None:
                self._line.wait(end_ns)
                self._line.breathe()
            elif self._is_exposure(outcome):
                self._answer(outcome, Reason.SHUTTING_DOWN)
                self._line.ask_once_more()
            else:
                return

    @staticmethod
    def _is_exposure(outcome: Outcome) -> bool:
        return outcome.frame is not None or isinstance(outcome.error, TornFrameError)

    def _answer(self, outcome: Outcome, fault: Reason | None) -> None:
        frame, torn = outcome.frame, outcome.error
        seq = frame.seq if frame is not None else None
        if isinstance(torn, TornFrameError):
            seq = torn.seq
        t_mono_ns = outcome.t_mono_ns if frame is None else frame.t_mono_ns
        step = self._counter.step(seq)
        for _ in range(step.lost):
            self._line.answer(self._next(t_mono_ns), Reason.LOST_TRIGGER)
        self._line.triggers_lost += step.lost
        if step.lost:
            log.warning("%d exposures gave no frame, before number %s", step.lost, seq)
        if step.doubtful:
            log.error("the camera's counter began anew at %s: which part this is, is unknown", seq)
            fault = fault or Reason.LOST_TRIGGER
        self._line.judge(self._next(t_mono_ns), outcome, fault)

    def _next(self, t_mono_ns: int) -> Trigger:
        return self._line.own_trigger(f"hw-{next(self._numbers)}", t_mono_ns)
