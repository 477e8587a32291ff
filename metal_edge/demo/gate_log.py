"""The PLC's log: one JSON line per part, whole or not at all."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metal_edge.demo.gate import Cause, GateRecord, LateDecision
from metal_edge.errors import OutputError


class LineFile:
    """Appends JSON lines, each in a single write(2): a reader or a crash never sees half of one.

    Raises:
        OutputError: the file cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise OutputError(f"log {path}: {error.strerror}", "choose another path") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def write(self, line: dict[str, Any]) -> None:
        """Appends one line."""
        data = json.dumps(line, allow_nan=False).encode("utf-8") + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise OutputError(
                f"log {self._path}: {error.strerror}", "free space or choose another path"
            ) from error
        if written != len(data):
            raise OutputError(f"log {self._path}: disk full", "free space and run again")


class GateLog(LineFile):
    """Keeps records in gate order until they are final, and appends them to a file.

    A record without a decision stays open for a while: a decision that comes late changes its
    cause, never what the gate did.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._held: deque[tuple[int, GateRecord]] = deque()

    def hold(self, record: GateRecord, late_window_ns: int) -> None:
        """Takes a record; only one that lacks a decision waits for a late one."""
        waits = record.cause is Cause.NO_DECISION
        self._held.append((record.gate_ns + late_window_ns if waits else 0, record))

    def amend(self, late: LateDecision) -> None:
        """Notes a decision that came after the gate, if its record is still open."""
        for index, (_, record) in enumerate(self._held):
            if record.trigger_id == late.trigger_id and record.cause is Cause.NO_DECISION:
                self._held[index] = (0, _with_late(record, late))

    def due_ns(self) -> int | None:
        """When the oldest record becomes final; None if nothing is held."""
        return self._held[0][0] if self._held else None

    def ready(self, now: int) -> list[GateRecord]:
        """Takes out the records that are final at `now`, in gate order."""
        final = []
        while self._held and self._held[0][0] <= now:
            final.append(self._held.popleft()[1])
        return final

    def drain(self) -> list[GateRecord]:
        """Takes out everything, as it stands."""
        records = [record for _, record in self._held]
        self._held.clear()
        return records


def _with_late(record: GateRecord, late: LateDecision) -> GateRecord:
    return replace(
        record, cause=Cause.LATE_DECISION, message=late.message, arrival_ns=late.arrival_ns
    )


def log_line(record: GateRecord, utc_offset_ns: int) -> dict[str, Any]:
    """One part as the log has it; `latency_ms` spans two clocks of the same host.

    Args:
        utc_offset_ns: UTC minus CLOCK_MONOTONIC on this host.
    """
    message, arrival = record.message, record.arrival_ns
    exposure = None if message is None else message.t_exposure_ns
    return {
        "part_id": record.part_id,
        "trigger_id": record.trigger_id,
        "t_trigger_utc_ns": record.t_trigger_ns + utc_offset_ns,
        "gate": "pass" if record.passed else "reject",
        "cause": record.cause.value,
        "golden": record.golden,
        "verdict": None if message is None else message.verdict.value,
        "reason": None if message is None else message.reason,
        "score": None if message is None else message.score,
        "threshold": None if message is None else message.threshold,
        "frame_id": None if message is None else message.frame_id,
        "decision_arrival_utc_ns": None if arrival is None else arrival + utc_offset_ns,
        "latency_ms": (
            None
            if arrival is None or exposure is None
            else (arrival + utc_offset_ns - exposure) / 1e6
        ),
        "latency_from_trigger_ms": (
            None if arrival is None else (arrival - record.t_trigger_ns) / 1e6
        ),
        "margin_ms": None if arrival is None else (record.gate_ns - arrival) / 1e6,
    }
