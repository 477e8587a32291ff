"""Many cells, one after the other: what is there is kept, what fails is named, the rest goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from metal_edge.errors import MetalEdgeError
from tools.results.cells import Cell, run_cell
from tools.results.fit import Hooks

_OVERHEAD_S = 60.0  # export and evaluation, before a cell has shown how long they take


@dataclass
class Summary:
    """How a campaign went; `failures` maps a cell's title to the error's text."""

    kept: int = 0
    made: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def run_cells(cells: Sequence[Cell], hooks: Hooks, say: Callable[[str], None]) -> Summary:
    """Runs every cell that is not finished.

    Raises:
        KeyboardInterrupt: the person stopped it; finished cells are whole, the others go on later.
    """
    summary = Summary()
    todo = []
    for cell in cells:
        if cell.finished() is None:
            todo.append(cell)
        else:
            summary.kept += 1
    if summary.kept:
        say(f"{summary.kept} of {len(cells)} cells are there already")
    spent: dict[str, list[float]] = defaultdict(list)
    for index, cell in enumerate(todo):
        left = remaining_s(todo[index:], spent)
        say(f"[{index + 1}/{len(todo)}] {title(cell)}; about {duration(left)} left in all")
        begun = hooks.seconds()
        try:
            result = run_cell(cell, hooks)
        except MetalEdgeError as error:
            summary.failures[title(cell)] = str(error)
            say(f"failed: {error}")
            continue
        spent[cell.variant.name].append(hooks.seconds() - begun)
        summary.made += 1
        figures = ", ".join(f"{k} {v:.4f}" for k, v in result.figures.items() if v is not None)
        say(f"  {figures}")
    return summary


def remaining_s(cells: Sequence[Cell], spent: Mapping[str, Sequence[float]]) -> float:
    """Seconds that `cells` will take: as long as their model took so far, else its budget."""
    total = 0.0
    for cell in cells:
        known = spent.get(cell.variant.name)
        total += mean(known) if known else _budget_s(cell)
    return total


def _budget_s(cell: Cell) -> float:
    minutes = cell.variant.training.max_minutes
    return _OVERHEAD_S + 60 * (minutes or 0.0)


def duration(seconds: float) -> str:
    """`2 h 05 min`, `7 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def title(cell: Cell) -> str:
    """A cell in a few words."""
    return f"{cell.name}, {cell.variant.name}, seed {cell.seed}"
