"""The table of a run of the fault suite: one row per fault, in the order of the suite."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
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
    gated = sum(row.parts or 0 for row in rows if row.uninspected is not None)
    bad = sum(row.uninspected or 0 for row in rows)
    lost = sum(row.lost or 0 for row in rows)
    written = f"{datetime.date.today().isoformat()}, {_machine()}, in {took_s / 60:.0f} minutes"
    mutants = "\n".join(f"| `{name}` | {m.noticed_by} |" for name, m in MUTANTS.items())
    return f"""# Faults, and what the line did

Written by `{command}` on {written}.
Real processes throughout: daemon, PLC simulator, mosquitto; faults come while parts flow, ten a
second. **{gated} parts at the gate, {bad} of them passed uninspected; of {parts} with those in free
run, {lost} events lost.**

A part counts as **uninspected** if it passed without a `pass` that reached the PLC before the gate,
from the daemon running at the time, on a picture that shows this very part and was taken after its
trigger. The camera's own record, the photo-eye's and what a third party heard on the wire prove
it; what the gate believed does not count (`metal_edge/demo/witness.py`). An **event** is lost if
a session gave a number to a decision and no event with that number was ever heard. **Recovery**
runs from the end of the fault, or from a kill, to the first part at the photo-eye that passes.
Each row also demands one outcome per part at the gate, one verdict per trigger, no defective part
passed, and that the daemon said what is wrong, in its state, its reasons or its log. Where other
work loads the machine a limit counts up to twice as long, and the row says so.

{table(rows)}
## What the rows do not say

- An hour is not waited for: time does nothing here, decisions that nobody takes do, and as many
  come. In free run there is no gate, so nothing could pass it.
- A broker that hangs has up to a second's decisions in its socket; they come out late, with their
  age in `t_publish_ns`. No PLC that follows [fail-safe.md](fail-safe.md) acts on one.
- RTSP and GigE Vision cameras keep no record of what they saw: there the daemon's exposure times
  stand for it, and no part may pass while the camera is gone.
- The clock steps for the daemon alone, by libfaketime; steps of a whole machine were not tried.
- "Bad signature" is the bundle's SHA-256 seal. It is no signature by a key: who can write the
  bundle can seal it again.
- A file system cannot turn read-only under open files here, so the daemon starts on one.
- A hung daemon is killed by the suite; systemd's watchdog doing so is in `make test-systemd`.
- A denied `decision` (QoS 0) is told by the PLC alone: it gets none and rejects, and its echo says
  so. Without `mqtt.echo_timeout_s` the daemon does not hear of it.

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
    kernel = platform.release().partition("-")[0]
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores of {model}, Linux {kernel}, load {load:.1f}"


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
