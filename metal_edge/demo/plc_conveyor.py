"""The simulated conveyor: places parts, brings them to the gate, stops and starts the line."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metal_edge.demo.gate import GateRecord
from metal_edge.demo.gate_log import GateLog, LineFile, log_line
from metal_edge.demo.line_stop import LineState, LineStop, StopSettings
from metal_edge.demo.plc_link import PlcLink, Waker

# What the daemon's answer needs to travel; its deadline lies this far before the gate.
REPLY_MARGIN_MS = 10.0
# A stopped line is woken by the link and by signals; this only bounds a wake-up that got lost.
STOPPED_LOOK_NS = 200_000_000


@dataclass(frozen=True, slots=True)
class Line:
    """The conveyor: which parts come, and when; times in ns.

    Attributes:
        dwell_ns: how long a part stands before the camera; None where that does not matter.
    """

    part_ids: tuple[str, ...]
    period_ns: int
    dwell_ns: int | None
    gate_delay_ns: int
    late_window_ns: int
    stop: StopSettings


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the run came to; golden parts count in neither `logged` nor `causes`."""

    parts: int
    logged: int
    causes: dict[str, int]
    stops: int
    stopped_by: str | None


class Conveyor:
    """Runs the line's clock in the calling thread; `waker` ends it early.

    Args:
        run_id: makes trigger ids unique over runs.
        report: is called for every part as its line goes to the log.
        announce: is called when the line stops, is checked, or runs again.
        photo_eye: gets a line per part before its trigger is sent, for who must know which part
            stands in front of the camera; times in ns of CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        line: Line,
        link: PlcLink,
        log: GateLog,
        waker: Waker,
        *,
        run_id: str,
        report: Callable[[int, dict[str, Any]], None],
        announce: Callable[[dict[str, Any]], None],
        photo_eye: LineFile | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._line = line
        self._link = link
        self._log = log
        self._waker = waker
        self._run_id = run_id
        self._report = report
        self._announce = announce
        self._photo_eye = photo_eye
        self._clock = clock
        self._latch = LineStop(line.stop)
        self._state = LineState.RUNNING
        self._to_come = deque(line.part_ids)
        self._golden: deque[str] = deque()
        self._under_way: deque[tuple[str, int]] = deque()  # trigger id, time at the gate
        self._next_ns = 0
        self._triggers = 0
        self._acknowledged = 0
        self._causes: Counter[str] = Counter()
        self._logged = 0
        self._stops = 0

    def run(self) -> Outcome:
        """Until every part is logged, or a signal came."""
        self._next_ns = self._clock()
        while self._waker.stopped_by is None:
            self._look()
            place_at, gate_at = self._place_at(), self._gate_at()
            due = [when for when in (place_at, gate_at, self._log.due_ns()) if when is not None]
            if self._to_come:
                due += [when for when in (self._latch.due_ns(),) if when is not None]
            if not due and not self._to_come:
                break
            now = self._clock()
            if not due or now < min(due):
                self._waker.wait_until(min(due, default=now + STOPPED_LOOK_NS))
            elif gate_at == min(due):
                self._bring_to_gate()
            elif place_at == min(due):
                self._place()
        self._write(self._log.drain())
        return Outcome(
            len(self._line.part_ids),
            self._logged,
            dict(self._causes),
            self._stops,
            self._waker.stopped_by,
        )

    def _look(self) -> None:
        """What happened meanwhile: late decisions, records that are final, link, operator."""
        for message in self._link.take_late():
            self._log.amend(message)
        self._write(self._log.ready(self._clock()))
        fault, session_id = self._link.link()
        if self._acknowledged != self._waker.acknowledged:
            self._acknowledged = self._waker.acknowledged
            self._latch.on_operator(fault)
        self._latch.on_link(fault, session_id, self._clock(), belt_empty=not self._under_way)
        self._follow()

    def _follow(self) -> None:
        """Does what the latch says, once."""
        if self._latch.state is self._state:
            return
        self._state = self._latch.state
        self._golden.clear()
        if self._state is LineState.STOPPED:
            self._stops += 1
            self._link.line_stopped()
        else:
            self._next_ns = self._clock()
        if self._state is LineState.CHECKING:
            self._golden.extend(self._line.stop.golden or ())
        why = self._latch.why if self._state is LineState.STOPPED else None
        self._announce({"event": "line", "state": self._state.value, "why": why})

    def _place_at(self) -> int | None:
        waiting = self._golden if self._state is LineState.CHECKING else self._to_come
        return None if self._state is LineState.STOPPED or not waiting else self._next_ns

    def _gate_at(self) -> int | None:
        return self._under_way[0][1] if self._under_way else None

    def _place(self) -> None:
        """The next part passes the photo-eye, at the time that was due: delays never add up."""
        golden = self._state is LineState.CHECKING
        part_id = (self._golden if golden else self._to_come).popleft()
        trigger_id = f"{self._run_id}-{self._triggers:06d}"
        gate_ns = self._next_ns + self._line.gate_delay_ns
        if self._photo_eye is not None:
            times = {"t_ns": self._clock(), "gate_ns": gate_ns}
            ids = {"part_id": part_id, "trigger_id": trigger_id, "golden": golden}
            self._photo_eye.write({**ids, **times})
        dwell_ns = self._line.dwell_ns
        leaves_ns = None if dwell_ns is None else self._next_ns + dwell_ns
        self._link.trigger(
            trigger_id, part_id, gate_ns, REPLY_MARGIN_MS, leaves_ns=leaves_ns, golden=golden
        )
        self._under_way.append((trigger_id, gate_ns))
        self._triggers += 1
        self._next_ns += self._line.period_ns

    def _bring_to_gate(self) -> None:
        record = self._link.at_gate(self._under_way.popleft()[0])
        self._log.hold(record, self._line.late_window_ns)
        self._latch.on_record(record)
        self._follow()

    def _write(self, records: Sequence[GateRecord]) -> None:
        for record in records:
            line = log_line(record, utc_offset_ns=time.time_ns() - time.monotonic_ns())
            self._log.write(line)
            if record.golden:
                self._announce({"event": "golden", **_part(line)})
                continue
            self._logged += 1
            self._causes[record.cause] += 1
            self._report(self._logged, line)


def _part(line: dict[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("part_id", "verdict", "cause")}
