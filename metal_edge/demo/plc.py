"""A simulated PLC: owns the conveyor, triggers the daemon over MQTT, drives the reject gate.

    python -m metal_edge.demo.plc --port 1883 --root metal/v1/e/s/a/l/st --parts 20 --log gate.jsonl

Part k passes the photo-eye at t0 + k * period and stands at the gate `gate_delay` later, on
CLOCK_MONOTONIC, so that delays never add up. The PLC knows nothing of good and bad parts. The
rules of the gate are in `gate.py`, those of stopping the line in `line_stop.py`, the protocol in
docs/fail-safe.md. SIGUSR1 is the operator's acknowledgement.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from metal_edge.demo.gate import Cause, GateSettings, RejectGate
from metal_edge.demo.gate_log import GateLog, LineFile
from metal_edge.demo.line_stop import StopSettings
from metal_edge.demo.plc_conveyor import Conveyor, Line, Outcome
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
# The daemon accepts the same (docs/daemon.md): a part it would refuse is better refused here.
MAX_PART_ID_CHARS = 64
PART_ID_PUNCTUATION = "_.:-"


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
    add("--dwell-ms", help="a part stays before the camera so long, or: any; default: the period")
    add("--late-window-ms", type=float, default=1000.0, help="listen for late decisions")
    add("--heartbeat-ms", type=float, default=200.0, help="the daemon's heartbeat period")
    add("--rearm-heartbeats", type=int, default=3, help="healthy ones in a row after a trip")
    add("--start-timeout", type=float, default=30.0, help="seconds to wait for the daemon")
    add("--stop-after-s", default="10", help="without an armed link the line stops; or: never")
    add("--stop-after-rejects", default="50", help="in a row; or: never")
    add("--golden-good", help="id of a known good part: it and the bad one let a new session in")
    add("--golden-bad", help="id of a known bad part")
    add("--no-operator", action="store_true", help="SIGUSR1 does not start a stopped line")
    add("--no-echo", action="store_true", help="do not answer heartbeats")
    add("--photo-eye", type=Path, help="JSON lines, one per part before its trigger; overwritten")
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
        dwell_ns=_dwell_ns(args),
        gate_delay_ns=round(args.gate_delay_ms * NS_PER_MS),
        late_window_ns=round(args.late_window_ms * NS_PER_MS),
        stop=_stop_settings(args),
    )
    settings = GateSettings(
        heartbeat_timeout_ns=round(3 * args.heartbeat_ms * NS_PER_MS),
        rearm_heartbeats=args.rearm_heartbeats,
    )
    run_id = uuid.uuid4().hex[:12]
    gate = RejectGate(settings)
    address = (args.host, args.port, args.root)
    link = PlcLink(*address, run_id=run_id, gate=gate, wake=waker.wake, echo=not args.no_echo)
    with ExitStack() as stack:
        log = stack.enter_context(GateLog(args.log))
        eye = stack.enter_context(LineFile(args.photo_eye)) if args.photo_eye else None
        stack.enter_context(link)
        wait_until_armed(link, waker, args.start_timeout)
        if args.progress_json:
            _say(json.dumps({"event": "ready", "parts": len(ids), "run_id": run_id}))
        outcome = Conveyor(
            line,
            link,
            log,
            waker,
            run_id=run_id,
            report=_reporter(len(ids), args.progress_json),
            announce=lambda event: _say(json.dumps(event)),
            photo_eye=eye,
        ).run()
        link.check()
    _say(json.dumps({"event": "summary", **_summary(outcome), **link.counters()}))
    return ExitCode.OK if outcome.stopped_by is None else ExitCode.INTERRUPTED


def _dwell_ns(args: argparse.Namespace) -> int | None:
    """By default the next part pushes it away."""
    if args.dwell_ms == "any":
        return None
    try:
        dwell_ms = args.period_ms if args.dwell_ms is None else float(args.dwell_ms)
        if 0 < dwell_ms < 1e9:
            return round(dwell_ms * NS_PER_MS)
    except ValueError:
        pass
    raise SettingsError("--dwell-ms is no time", "give milliseconds above 0, or any")


def _stop_settings(args: argparse.Namespace) -> StopSettings:
    if (args.golden_good is None) != (args.golden_bad is None):
        raise SettingsError("one golden part proves nothing", "give --golden-good and --golden-bad")
    for part_id in (args.golden_good, args.golden_bad):
        if part_id is not None and not _is_part_id(part_id):
            raise SettingsError(f"golden part id {part_id!r} is not acceptable", "use a part id")
    try:
        seconds = None if args.stop_after_s == "never" else float(args.stop_after_s)
        rejects = None if args.stop_after_rejects == "never" else int(args.stop_after_rejects)
        after_ns = None if seconds is None else round(seconds * 1e9)
    except (ValueError, OverflowError) as error:
        raise SettingsError(f"when to stop the line: {error}", "give a number, or never") from error
    golden = None if args.golden_good is None else (args.golden_good, args.golden_bad)
    return StopSettings(after_ns, rejects, golden, operator=not args.no_operator)


def _summary(outcome: Outcome) -> dict[str, Any]:
    passed = outcome.causes.get(Cause.PASS_VERDICT, 0)
    return {
        "parts": outcome.parts,
        "logged": outcome.logged,
        "pass": passed,
        "reject": outcome.logged - passed,
        "causes": dict(sorted(outcome.causes.items())),
        "stops": outcome.stops,
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
