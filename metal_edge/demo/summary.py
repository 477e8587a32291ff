"""What happened at the gate, joined with the truth about every part."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metal_edge.errors import DataError

Truth = Callable[[str], str | None]  # part id -> defect, None for a good part


@dataclass(frozen=True, slots=True)
class LineSummary:
    """Counts over one run of the line.

    Attributes:
        parts: that passed the photo-eye.
        good, defective: the truth about them.
        passed, rejected: what the gate did.
        overkill: good parts rejected, for whatever cause.
        escapes: defective parts let through.
        unknown: parts whose verdict was `unknown`.
        no_verdict: parts without a usable verdict in time (missing, late, malformed, ...).
        unproven: parts let through without a `pass` verdict of their own before the gate. Any
            such part is a failure of the protocol, whatever the model can do.
        latency_p50_ms, latency_p99_ms: exposure to arrival at the PLC; None if none arrived.
        escapes_by_defect: defect -> [let through, seen].
    """

    parts: int
    good: int
    defective: int
    passed: int
    rejected: int
    overkill: int
    escapes: int
    unknown: int
    no_verdict: int
    unproven: int
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    escapes_by_defect: Mapping[str, tuple[int, int]]
    causes: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def read_gate_log(path: Path) -> list[dict[str, Any]]:
    """The PLC's lines.

    Raises:
        DataError: the log is missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"gate log {path} cannot be read ({error})", "run the demo again"
        ) from error


def summarise(lines: Iterable[Mapping[str, Any]], truth: Truth) -> LineSummary:
    """Counts what the gate did against what the parts were."""
    lines = list(lines)
    defects = [truth(line["part_id"]) for line in lines]
    passed = [line["gate"] == "pass" for line in lines]
    latencies = [line["latency_ms"] for line in lines if line["latency_ms"] is not None]
    p50, p99 = np.percentile(latencies, [50, 99]) if latencies else (None, None)
    by_defect = {
        kind: (
            sum(p for p, d in zip(passed, defects, strict=True) if d == kind),
            defects.count(kind),
        )
        for kind in sorted({d for d in defects if d is not None})
    }
    bad = len([d for d in defects if d is not None])
    escapes = sum(let_through for let_through, _ in by_defect.values())
    return LineSummary(
        parts=len(lines),
        good=len(lines) - bad,
        defective=bad,
        passed=sum(passed),
        rejected=len(lines) - sum(passed),
        overkill=sum(not p and d is None for p, d in zip(passed, defects, strict=True)),
        escapes=escapes,
        unknown=sum(line["verdict"] == "unknown" for line in lines),
        no_verdict=sum(line["verdict"] is None or _late(line) for line in lines),
        unproven=sum(p and not _proven(line) for p, line in zip(passed, lines, strict=True)),
        latency_p50_ms=None if p50 is None else round(float(p50), 2),
        latency_p99_ms=None if p99 is None else round(float(p99), 2),
        escapes_by_defect=by_defect,
        causes=dict(sorted(Counter(line["cause"] for line in lines).items())),
    )


def _late(line: Mapping[str, Any]) -> bool:
    return line["margin_ms"] is not None and line["margin_ms"] < 0


def _proven(line: Mapping[str, Any]) -> bool:
    """Whether the log itself shows a pass in time; independent of how the gate decided."""
    score, threshold, margin = line["score"], line["threshold"], line["margin_ms"]
    if score is None or threshold is None or margin is None:
        return False
    return bool(line["verdict"] == "pass" and score < threshold and margin >= 0)


def as_text(summary: LineSummary) -> str:
    """The summary for a person, one fact per line."""
    s = summary
    caught = s.defective - s.escapes
    lines = [
        f"parts on the line     {s.parts} ({s.good} good, {s.defective} defective)",
        f"rejects               {s.rejected}: {caught} defective, {s.overkill} good",
        f"overkill              {s.overkill} of {s.good} good parts"
        f" rejected{_share(s.overkill, s.good)}",
        f"escapes               {s.escapes} of {s.defective} defective parts let"
        f" through{_share(s.escapes, s.defective)}",
        f"unknown               {s.unknown} verdicts, {s.no_verdict} missing or late"
        " (all of these were rejected)",
        f"latency               {_ms(s.latency_p50_ms)} p50, {_ms(s.latency_p99_ms)} p99,"
        " camera exposure to PLC",
    ]
    if s.escapes:
        which = ", ".join(
            f"{k} {n} of {total}" for k, (n, total) in s.escapes_by_defect.items() if n
        )
        lines.insert(4, f"  by defect           {which}")
    return "\n".join(lines)


def _share(count: int, total: int) -> str:
    return f" ({100 * count / total:.1f} %)" if total else ""


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
