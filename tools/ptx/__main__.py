"""Command line: what kernels a PTX file holds, and what one does when it runs.

    python -m tools.ptx list kernels.ptx
    python -m tools.ptx stats kernels.ptx NAME --grid 4,2 --threads 128 --shared 4096 \\
        --argument zeros:1048576 --argument random-f16:65536 --argument 64 --argument f32:0.125

`stats` runs the kernel on made-up data, checks it and counts. An argument is a number, f32:NUMBER,
zeros:BYTES or random-f16:ELEMENTS, random-f32:, random-s8: (device memory), in the kernel's order.
It ends with 1 if the kernel broke a rule, with 2 if it cannot be run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tools.ptx import Module, PtxError, Report, Statistics, launch
from tools.ptx.syntax import Kernel

_SHOWN = 12


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _argument(text: str, random: np.random.Generator) -> Any:
    kind, _, value = text.partition(":")
    try:
        if not value:
            return int(text, 0)
        if kind == "f32":
            return np.float32(value)
        count = int(value)
        if kind == "zeros":
            return np.zeros(count, np.uint8)
        if kind in ("random-f16", "random-f32"):
            return random.standard_normal(count).astype(kind.replace("random-f", "float"))
        if kind == "random-s8":
            return random.integers(-128, 128, count, np.int8)
    except ValueError:
        pass
    raise PtxError(f"--argument {text!r}: a number, f32:NUMBER, zeros:BYTES or random-f16:ELEMENTS")


def _describe(kernel: Kernel) -> str:
    parameters = ", ".join(
        f".{each.type}" if each.type else f"struct of {each.size} bytes"
        for each in kernel.parameters
    )
    matrix = sum(item.parts[0] == "mma" for item in kernel.instructions)
    shared = sum(v.size or 0 for v in kernel.variables.values() if v.space == "shared")
    limits = "".join(f", {name} {value}" for name, value in kernel.directives.items())
    return (
        f"{kernel.name}({parameters}): {len(kernel.instructions)} instructions, {matrix} mma, "
        f"{shared} bytes of static shared memory{limits}"
    )


def _show(report: Report) -> None:
    for violation in report.violations:
        times = report.counts[violation.kind, violation.instruction.line]
        print(f"VIOLATION ({times} times) {violation}")
    counts = report.statistics
    print(
        f"{report.kernel}: {counts.blocks} blocks, {counts.instructions} warp instructions, "
        f"{counts.barriers} barriers"
    )
    for opcode, count in sorted(counts.opcodes.items(), key=lambda pair: -pair[1])[:_SHOWN]:
        print(f"  {count:8d}  {opcode}")
    print(
        f"global: {counts.global_read} bytes read ({counts.unique_bytes.get('read', 0)} distinct), "
        f"{counts.global_written} written ({counts.unique_bytes.get('written', 0)} distinct), "
        f"coalescing {counts.coalescing:.2f}"
    )
    print(f"shared: {counts.bank_conflicts} extra passes over the banks")
    _show_accesses(counts)


def _show_accesses(counts: Statistics) -> None:
    """Where transactions are wasted, the worst lines of the source first."""
    lines: dict[str, list[int]] = {}
    for access in counts.accesses.values():
        where = access.instruction.source or f"PTX line {access.instruction.line}"
        kind = "store" if access.store else "load"
        total = lines.setdefault(f"{access.space} {kind} at {where}", [0, 0])
        total[0] += access.transactions
        total[1] += access.ideal
    wasted = [(done - ideal, done, ideal, where) for where, (done, ideal) in lines.items()]
    for waste, done, ideal, where in sorted(wasted, reverse=True)[:_SHOWN]:
        if waste:
            print(f"  {where}: {done} transactions where {ideal} would do")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.ptx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="the kernels of a PTX file")
    listing.add_argument("file", type=Path)
    stats = commands.add_parser("stats", help="run a kernel on made-up data, check it and count")
    stats.add_argument("file", type=Path)
    stats.add_argument("kernel")
    stats.add_argument("--grid", type=_numbers, default=[1], help="blocks, x,y,z")
    stats.add_argument("--threads", type=_numbers, required=True, help="threads per block, x,y,z")
    stats.add_argument("--shared", type=int, default=0, help="bytes of dynamic shared memory")
    stats.add_argument("--argument", action="append", default=[], help="see above; once for each")
    stats.add_argument("--seed", type=int, help="shuffle the order of warps")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        module = Module.load(options.file)
        if options.command == "list":
            print(f"{options.file}: PTX {module.version}, {module.target}")
            for kernel in module.kernels.values():
                print("  " + _describe(kernel))
            return 0
        random = np.random.default_rng(0)
        report = launch(
            module,
            options.kernel,
            options.grid,
            options.threads,
            [_argument(text, random) for text in options.argument],
            shared_bytes=options.shared,
            seed=options.seed,
            profile=True,
            raises=False,
        )
    except (PtxError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    _show(report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
