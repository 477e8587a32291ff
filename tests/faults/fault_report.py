"""The table of a run of the fault suite: one row per fault, in the order of the suite."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from fault_mutants import MUTANTS

HEAD = (
    "fault",
    "injected how",
    "parts",
    "uninspected passed",
    "lost events",
    "recovery s (min / median / max)",
    "limit s",
    "result",
)


@dataclass
class Row:
    """One fault. `result` is `survived`, `failed`, or why it was not tried."""

    fault: str
    how: str
    limit_s: float | None = None
    parts: int | None = None
    uninspected: int | None = None
    lost: int | None = None
    recoveries: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    result: str = "failed"

    def cells(self) -> tuple[str, ...]:
        times = self.recoveries
        spread = (min(times), statistics.median(times), max(times)) if times else ()
        result = self.result + (f" ({'; '.join(self.notes)})" if self.notes else "")
        return (
            self.fault,
            self.how,
            _text(self.parts),
            _text(self.uninspected),
            _text(self.lost),
            " / ".join(f"{value:.1f}" for value in spread) or "-",
            "-" if self.limit_s is None else f"{self.limit_s:g}",
            result,
        )


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD)), *(_line(row.cells()) for row in rows)]
    return "\n".join(lines) + "\n"


def page(rows: list[Row], command: str, took_s: float) -> str:
    """docs/faults.md: what was tried where, the table, and how each row was seen failing."""
    parts = sum(row.parts or 0 for row in rows)
    bad = sum(row.uninspected or 0 for row in rows)
    lost = sum(row.lost or 0 for row in rows)
    written = f"{datetime.date.today().isoformat()}, {_machine()}, in {took_s / 60:.0f} minutes"
    mutants = "\n".join(f"| `{name}` | {m.noticed_by} |" for name, m in MUTANTS.items())
    return f"""# Faults, and what the line did

Written by `{command}` on {written}.
Real processes throughout: daemon, PLC simulator, mosquitto; faults come while parts flow, ten a
second. **{parts} parts, {bad} of them passed uninspected, {lost} events lost.**

A part counts as **uninspected** if it passed without a `pass` that reached the PLC before the gate,
from the daemon running at the time, on a picture that shows this very part and was taken after its
trigger. The camera's own record, the photo-eye's and what a third party heard on the wire prove
it; what the gate believed does not count (`metal_edge/demo/witness.py`). An **event** is lost if
a session gave a number to a decision and no event with that number was ever heard. **Recovery**
runs from the end of the fault, or from a kill, to the first part at the photo-eye that passes.
Each row also demands one outcome per part at the gate, one verdict per trigger, no defective part
passed, and that the daemon's state named the fault.

{table(rows)}
## Seen failing

A test that cannot fail proves nothing. `make test-faults MUTANTS=1` makes one deliberate mistake
after another in the daemon or the gate (`tests/faults/fault_mutants.py`), and asks that every
scenario named beside it fails:

| mistake | scenarios (`pytest -k`) |
|---|---|
{mutants}
"""


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    kernel = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=False).stdout
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores of {model}, Linux {kernel.strip()}, load {load:.1f}"


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
