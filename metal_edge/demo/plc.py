"""A simulated PLC: owns the conveyor, triggers the daemon over MQTT, drives the reject gate.

    python -m metal_edge.demo.plc --port 1883 --root metal/v1/e/s/a/l/st --parts 20 --log gate.jsonl

Part k passes the photo-eye at t0 + k * period and stands at the gate `gate_delay` later, on
CLOCK_MONOTONIC, so that delays never add up. The PLC knows nothing of good and bad parts. The
rules of the gate are in `gate.py`, the protocol in docs/fail-safe.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metal_edge.demo.gate import Cause, GateRecord, GateSettings, RejectGate
from metal_edge.demo.gate_log import GateLog, log_line
from metal_edge.demo.plc_link import PlcLink, Waker
from metal_edge.errors import (
    DataError,
    ExitCode,
    MetalEdgeError,
    MissingInputError,
    SettingsError,
    UnavailableError,
)

NS_PER_MS = 1_000_000
# What the daemon's answer needs to travel; its deadline lies this far before the gate.
REPLY_MARGIN_MS = 10.0
# The daemon accepts the same (docs/daemon.md): a part it would refuse is better refused here.
MAX_PART_ID_CHARS = 64
PART_ID_PUNCTUATION = "_.:-"


@dataclass(frozen=True, slots=True)
class Line:
    """The conveyor: which parts come, and when; times in ns."""

    part_ids: tuple[str, ...]
    period_ns: int
    gate_delay_ns: int
    late_window_ns: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the run came to."""

    parts: int
    logged: int
    causes: dict[str, int]
    stopped_by: str | None


class Conveyor:
    """Runs the line's clock in the calling thread; `waker` ends it early.

    Args:
        run_id: makes trigger ids unique over runs.
        report: is called for every part as its line goes to the log.
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
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._line = line
        self._link = link
        self._log = log
        self._waker = waker
        self._run_id = run_id
        self._report = report
        self._clock = clock
        self._causes: Counter[str] = Counter()
        self._logged = 0

    def run(self) -> Outcome:
        """Until every part is logged, or a signal came."""
        line, triggered, gated = self._line, 0, 0
        t0 = self._clock()
        while self._waker.stopped_by is None:
            for message in self._link.take_late():
                self._log.amend(message)
            self._write(self._log.ready(self._clock()))
            trigger_at = t0 + triggered * line.period_ns if triggered < len(line.part_ids) else None
            gate_at = t0 + gated * line.period_ns + line.gate_delay_ns
            due = [
                when
                for when in (
                    trigger_at,
                    gate_at if gated < triggered else None,
                    self._log.due_ns(),
                )
                if when is not None
            ]
            if not due:
                break
            if self._clock() < min(due):
                self._waker.wait_until(min(due))
            elif gated < triggered and gate_at == min(due):
                self._log.hold(self._link.at_gate(self._trigger_id(gated)), line.late_window_ns)
                gated += 1
            elif trigger_at == min(due):
                part_id = line.part_ids[triggered]
                gate_ns = trigger_at + line.gate_delay_ns
                self._link.trigger(self._trigger_id(triggered), part_id, gate_ns, REPLY_MARGIN_MS)
                triggered += 1
        self._write(self._log.drain())
        return Outcome(len(line.part_ids), self._logged, dict(self._causes), self._waker.stopped_by)

    def _trigger_id(self, index: int) -> str:
        return f"{self._run_id}-{index:06d}"

    def _write(self, records: Sequence[GateRecord]) -> None:
        for record in records:
            line = log_line(record, utc_offset_ns=time.time_ns() - time.monotonic_ns())
            self._log.write(line)
            self._logged += 1
            self._causes[record.cause] += 1
            self._report(self._logged, line)


def wait_until_armed(link: PlcLink, waker: Waker, timeout_s: float) -> None:
    """Waits for the daemon's retained state and a heartbeat.

    Raises:
        UnavailableError: the broker refused us, or no daemon armed the gate in time.
    """
    deadline = time.monotonic_ns() + round(timeout_s * 1e9)
    while waker.stopped_by is None:
        link.check()
        fault = link.fault()
        if fault is None:
            return
        if time.monotonic_ns() >= deadline:
            missing = "no retained state" if fault is Cause.DAEMON_OFFLINE else str(fault)
            raise UnavailableError(
                f"no daemon ready on {link.root} at {link.address} after {timeout_s:g} s"
                f" ({missing})",
                "start the daemon with the same topic root, or raise --start-timeout",
            )
        waker.wait_until(deadline)


def read_part_ids(path: Path | None, first: int, count: int | None) -> tuple[str, ...]:
    """`count` part ids from line `first` (0-based) of `path`, or numbered `P-000000` onwards.

    Raises:
        MissingInputError: no such file.
        SettingsError: neither a file nor a count, or a negative number.
        DataError: too few lines, an id the daemon would refuse, or one that comes twice.
    """
    if first < 0 or (count is not None and count < 1):
        raise SettingsError("--first-index or --parts is negative or zero", "count from 0 and 1")
    if path is None:
        if count is None:
            raise SettingsError("how many parts is not said", "give --parts or --part-ids")
        return tuple(f"P-{index:06d}" for index in range(first, first + count))
    if not path.is_file():
        raise MissingInputError(f"part id file {path} not found", "give one id per line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error})", "save it as UTF-8 text") from error
    ids = tuple(line for line in lines if line)[first : None if count is None else first + count]
    if not ids or (count is not None and len(ids) < count):
        raise DataError(f"{path} has {len(ids)} ids from index {first}", "give a longer file")
    for part_id, times in Counter(ids).items():
        if times > 1:
            raise DataError(f"{path}: part id {part_id!r} comes {times} times", "make ids unique")
        if not _is_part_id(part_id):
            raise DataError(
                f"{path}: part id {part_id!r} is not acceptable",
                f"use 1 to {MAX_PART_ID_CHARS} of A-Z a-z 0-9 {' '.join(PART_ID_PUNCTUATION)}",
            )
    return ids


def _is_part_id(text: str) -> bool:
    plain = all(c.isascii() and (c.isalnum() or c in PART_ID_PUNCTUATION) for c in text)
    return plain and len(text) <= MAX_PART_ID_CHARS


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _reporter(total: int, as_json: bool) -> Callable[[int, dict[str, Any]], None]:
    def report(done: int, line: dict[str, Any]) -> None:
        if as_json:
            known = {key: line[key] for key in ("part_id", "gate", "cause", "latency_ms")}
            _say(json.dumps({"event": "gate", "done": done, "parts": total, **known}))
        else:
            _say(f"[{done}/{total}] {line['part_id']} {line['gate']} ({line['cause']})")

    return report


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; defaults fit the daemon's (5 heartbeats per second)."""
    parser = argparse.ArgumentParser(
        prog="metal_edge.demo.plc", description="Simulated PLC with a reject gate."
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="broker")
    add("--port", type=int, default=1883)
    add("--root", required=True, help="the station's topic root, metal/v1/...")
    add("--parts", type=int, help="how many parts; all of --part-ids if not given")
    add("--first-index", type=int, default=0, help="number of the first part, from 0")
    add("--part-ids", type=Path, help="file with one part id per line")
    add("--period-ms", type=float, default=500.0, help="from part to part")
    add("--gate-delay-ms", type=float, default=400.0, help="photo-eye to gate")
    add("--late-window-ms", type=float, default=1000.0, help="listen for late decisions")
    add("--heartbeat-ms", type=float, default=200.0, help="the daemon's heartbeat period")
    add("--rearm-heartbeats", type=int, default=3, help="healthy ones in a row after a trip")
    add("--start-timeout", type=float, default=30.0, help="seconds to wait for the daemon")
    add("--log", type=Path, required=True, help="JSON lines, one per part; overwritten")
    add("--progress-json", action="store_true", help="progress as JSON lines")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace, waker: Waker) -> ExitCode:
    times = (args.period_ms, args.gate_delay_ms, args.heartbeat_ms, args.start_timeout)
    if not all(0 < value < 1e9 for value in times) or not 0 <= args.late_window_ms < 1e9:
        raise SettingsError("a time is not positive", "give milliseconds above 0")
    if args.rearm_heartbeats < 1:
        raise SettingsError("--rearm-heartbeats is below 1", "give 1 or more")
    ids = read_part_ids(args.part_ids, args.first_index, args.parts)
    line = Line(
        ids,
        period_ns=round(args.period_ms * NS_PER_MS),
        gate_delay_ns=round(args.gate_delay_ms * NS_PER_MS),
        late_window_ns=round(args.late_window_ms * NS_PER_MS),
    )
    settings = GateSettings(
        heartbeat_timeout_ns=round(3 * args.heartbeat_ms * NS_PER_MS),
        rearm_heartbeats=args.rearm_heartbeats,
    )
    run_id = uuid.uuid4().hex[:12]
    gate = RejectGate(settings)
    link = PlcLink(args.host, args.port, args.root, run_id=run_id, gate=gate, wake=waker.wake)
    with GateLog(args.log) as log, link:
        wait_until_armed(link, waker, args.start_timeout)
        if args.progress_json:
            _say(json.dumps({"event": "ready", "parts": len(ids), "run_id": run_id}))
        report = _reporter(len(ids), args.progress_json)
        outcome = Conveyor(line, link, log, waker, run_id=run_id, report=report).run()
        link.check()
    _say(json.dumps({"event": "summary", **_summary(outcome), **link.counters()}))
    return ExitCode.OK if outcome.stopped_by is None else ExitCode.INTERRUPTED


def _summary(outcome: Outcome) -> dict[str, Any]:
    passed = outcome.causes.get(Cause.PASS_VERDICT, 0)
    return {
        "parts": outcome.parts,
        "logged": outcome.logged,
        "pass": passed,
        "reject": outcome.logged - passed,
        "causes": dict(sorted(outcome.causes.items())),
        "stopped_by": outcome.stopped_by,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 all parts logged, 69 no broker or daemon, 130 stopped by a signal."""
    args = parse_arguments(argv)
    try:
        with Waker() as waker:
            return _run(args, waker)
    except MetalEdgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
