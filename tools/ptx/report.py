"""What a launch found: violations of the programming model, and counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tools.ptx.statistics import Statistics
from tools.ptx.syntax import Instruction, PtxError


class Kind(StrEnum):
    """What kind of rule a kernel broke."""

    RACE = "race"
    ASYNC = "async copy"
    UNINITIALISED = "uninitialised"
    BOUNDS = "out of bounds"
    ALIGNMENT = "misaligned"
    DIVERGENCE = "divergence"
    BARRIER = "barrier"
    DEADLOCK = "deadlock"
    BUDGET = "budget"
    TRAP = "trap"


@dataclass(frozen=True)
class Violation:
    """One rule broken, at the first place where an instruction broke it; `lane` is of the warp."""

    kind: Kind
    message: str
    instruction: Instruction
    block: tuple[int, int, int]
    warp: int
    lane: int

    def __str__(self) -> str:
        source = f" ({self.instruction.source})" if self.instruction.source else ""
        return (
            f"{self.kind}: {self.message}; block {self.block}, warp {self.warp}, lane {self.lane}, "
            f"PTX line {self.instruction.line}{source}: {self.instruction.text}"
        )


@dataclass
class Report:
    """The outcome of one launch."""

    kernel: str
    violations: list[Violation]
    statistics: Statistics
    counts: dict[tuple[Kind, int], int] = field(default_factory=dict)  # (kind, PTX line) -> times

    def __iter__(self) -> Iterator[Violation]:
        return iter(self.violations)

    def kinds(self) -> set[Kind]:
        """The kinds of rules that were broken."""
        return {violation.kind for violation in self.violations}


class ViolationError(PtxError):
    """A kernel broke rules of the programming model; `report` has them all."""

    def __init__(self, report: Report) -> None:
        self.report = report
        shown = [str(violation) for violation in report.violations[:8]]
        more = len(report.violations) - len(shown)
        if more > 0:
            shown.append(f"... and {more} more")
        super().__init__(f"{report.kernel} broke the rules:\n  " + "\n  ".join(shown))


class Stop(Exception):  # noqa: N818 - control flow inside the machine, never seen outside
    """The launch cannot go on after this violation; it is recorded already."""


class Recorder:
    """Collects violations: the first of each kind and instruction in full, the rest as a count."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.counts: dict[tuple[Kind, int], int] = {}

    def add(self, violation: Violation) -> None:
        """Records one violation."""
        key = (violation.kind, violation.instruction.line)
        if key not in self.counts:
            self.violations.append(violation)
        self.counts[key] = self.counts.get(key, 0) + 1
