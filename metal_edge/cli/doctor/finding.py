"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from metal_edge.errors import MetalEdgeError


class Level(StrEnum):
    """How bad a finding is. Only FAIL changes the exit code."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found and, unless it is well, what to do."""

    level: Level
    check: str
    found: str
    remedy: str = ""


def failure(check: str, error: MetalEdgeError, level: Level = Level.FAIL) -> Finding:
    """An error that says itself what to do."""
    return Finding(level, check, error.what, error.remedy)
