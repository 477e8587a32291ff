"""Nsight Compute's counters of every kernel, beside what docs/kernels.md says beforehand."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.kernels import build

_TIMEOUT_S = 600
_UNITS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "byte": 1.0, "Kbyte": 1e3,
          "Mbyte": 1e6, "Gbyte": 1e9}  # fmt: skip
# Column of the table -> the counter, or several to be added.
COUNTERS: dict[str, tuple[str, ...]] = {
    "us": ("gpu__time_duration.sum",),
    "registers": ("launch__registers_per_thread",),
    "blocks per SM": (
        "launch__occupancy_limit_registers", "launch__occupancy_limit_shared_mem",
        "launch__occupancy_limit_warps", "launch__occupancy_limit_blocks",
    ),
    "occupancy, %": ("sm__maximum_warps_per_active_cycle_pct",),
    "achieved, %": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "DRAM read, KB": ("dram__bytes_read.sum",),
    "sectors read, KB": (
        "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
        "l1tex__t_sectors_pipe_lsu_mem_global_op_ldgsts_cache_access.sum",
        "l1tex__t_sectors_pipe_lsu_mem_global_op_ldgsts_cache_bypass.sum",
    ),
    "sectors written, KB": ("l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",),
    "asked for, KB": (
        "smsp__sass_l1tex_t_sectors_pipe_lsu_mem_global_op_ld.sum",
        "smsp__sass_l1tex_t_sectors_pipe_lsu_mem_global_op_ldgsts.sum",
    ),
    "bank conflicts": (
        "smsp__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
        "smsp__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_ldsm.sum",
        "smsp__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
        "smsp__sass_l1tex_data_bank_conflicts_pipe_lsu_mem_shared_op_ldgsts.sum",
    ),
    "all passes lost": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",),
    "tensor-core instructions": ("sm__inst_executed_pipe_tensor.sum",),
    "local memory": (
        "l1tex__t_sectors_pipe_lsu_mem_local_op_ld.sum",
        "l1tex__t_sectors_pipe_lsu_mem_local_op_st.sum",
    ),
}  # fmt: skip
_SMALLEST = {"blocks per SM"}  # the limits' minimum, not their sum
_SECTORS = {"sectors read, KB", "asked for, KB", "sectors written, KB"}


@dataclass(frozen=True, slots=True)
class Counted:
    """One launch: its kernel, and a number per column; None where Nsight Compute has no such."""

    kernel: str
    values: dict[str, float | None]


def count(folder: Path) -> Sequence[Counted] | str:
    """Runs `tools.device.launches` under Nsight Compute; a text where that is not possible."""
    tool = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if tool is None:
        return "Nsight Compute (ncu) is not installed: nothing was counted"
    command = [
        tool, "--metrics", ",".join(_known(tool)),
        "--kernel-name", "regex:masked_attention", "--csv", "--page", "raw",
        "--clock-control", "none",  # the clocks of a machine are its owner's
        "--log-file", str(folder / "ncu.csv"),
        sys.executable, "-m", "tools.device.launches",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=_TIMEOUT_S, check=False, cwd=build.ROOT,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Nsight Compute did not run: {error}"
    log = folder / "ncu.csv"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if done.returncode:
        said = " ".join((done.stdout + text).split())
        return f"Nsight Compute ended with {done.returncode}: {said[-500:]}"
    return parse(text)


def _known(tool: str) -> list[str]:
    """The counters that this GPU has: ncu refuses a list with any other. `launch__` are none."""
    names = sorted({name for several in COUNTERS.values() for name in several})
    done = subprocess.run(
        [tool, "--query-metrics"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    listed = {line.split()[0] for line in done.stdout.splitlines() if line[:1].isalpha()}
    return [n for n in names if "." not in n or n.partition(".")[0] in listed]


def parse(text: str) -> list[Counted]:
    """What `ncu --csv --page raw` wrote: lines of its own, names, units, a row per launch."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if not lines:
        return []
    reader = csv.DictReader(io.StringIO("\n".join(lines)))
    rows = list(reader)
    units, launches = rows[0], rows[1:]
    return [Counted(row["Kernel Name"], _values(row, units)) for row in launches]


def _values(row: dict[str, str], units: dict[str, str]) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for column, names in COUNTERS.items():
        found = [n for name in names if (n := _number(row.get(name), units.get(name))) is not None]
        if not found:
            values[column] = None
            continue
        value = min(found) if column in _SMALLEST else sum(found)
        value *= 32e-3 if column in _SECTORS else 1
        values[column] = value * 1e-3 if column == "DRAM read, KB" else value
    return values


def _number(text: str | None, unit: str | None) -> float | None:
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    return value * _UNITS.get(unit or "", 1.0)


def table(launches: Sequence[str], counted: Sequence[Counted]) -> str:
    """Markdown; `launches` names them in their order."""
    lines = [
        f"| problem | kernel | {' | '.join(COUNTERS)} |",
        "|---|---|" + "---|" * len(COUNTERS),
    ]
    for name, each in zip(launches, counted, strict=True):
        cells = ["" if v is None else f"{v:.4g}" for v in each.values.values()]
        lines.append(
            f"| {name} | `{each.kernel.removeprefix('masked_attention_')}` | {' | '.join(cells)} |"
        )
    return "\n".join(lines)
