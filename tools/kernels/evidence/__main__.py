"""The command behind `make kernels-evidence`: heavy imports inside, so that --help is quick."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.results.command import run_command

if TYPE_CHECKING:
    from metal_edge.cli.console import Advance
    from tools.kernels.evidence.compiled import Kernel
    from tools.kernels.evidence.tables import Measured

HELP = """What can be known of the CUDA kernels without a GPU: registers, occupancy, bytes, floors.

Needs nvcc and g++; NVIDIA's disassembler is fetched once (5 MB, below build/).

Example: python -m tools.kernels.evidence --docs docs
"""

PAGE = "kernels.md"


def evidence(
    docs: Annotated[
        Path | None, typer.Option(help="Also write the tables into kernels.md there.")
    ] = None,
) -> None:
    """See HELP."""
    from metal_edge.cli.console import progress, say, say_result  # noqa: PLC0415
    from metal_edge.errors import UnavailableError  # noqa: PLC0415
    from tools.bench.page import circumstances  # noqa: PLC0415
    from tools.kernels import build  # noqa: PLC0415
    from tools.kernels.evidence import tables  # noqa: PLC0415
    from tools.results.run import hooks, machine  # noqa: PLC0415

    try:
        with progress("compiling for sm_87 and sm_110") as advance:
            kernels = _kernels(advance)
        with progress("interpreting PTX") as advance:
            measured = _measured(advance)
    except build.MissingToolError as error:
        raise UnavailableError(str(error), "the page in docs/ holds the last result") from error
    command = os.environ.get("EVIDENCE_COMMAND", "").strip()
    command = command or shlex.join(["python", "-m", "tools.kernels.evidence", *sys.argv[1:]])
    with hooks() as world:
        facts = circumstances(f"{machine()}; {_compiler()}", world.utc(), command)
    parts = {
        "compiled": f"{facts}\n\n{tables.kernels_table(kernels)}\n\n{tables.limits()}.",
        "traffic": f"{facts}\n\n{tables.traffic_table(measured)}",
        "floors": f"{tables.floors_table(measured)}\n\n{tables.sources()}",
    }
    say_result("\n\n".join(parts.values()))
    if docs is not None:
        say(str(_write(docs, parts)))


def _kernels(advance: Advance) -> list[Kernel]:
    from metal_edge.cli.console import say  # noqa: PLC0415
    from tools.kernels.attention import ALL_HEAD_DIMS, HostLibrary  # noqa: PLC0415
    from tools.kernels.block import KERNEL_SOURCE  # noqa: PLC0415
    from tools.kernels.evidence import compiled, fused, sass  # noqa: PLC0415
    from tools.tensorrt.wheels import UnobtainableError  # noqa: PLC0415

    try:
        disassembler = sass.disassembler()
    except UnobtainableError as error:
        say(f"no instructions will be counted: {error}")
        disassembler = None
    launches = compiled.attention_launches(HostLibrary())
    found: list[Kernel] = []
    sources = (
        (launches, compiled.KERNELS_SOURCE, ALL_HEAD_DIMS),
        (fused.launches(), KERNEL_SOURCE, None),
    )
    for done, (wanted, source, head_dims) in enumerate(sources):
        found += compiled.compiled(wanted, source, head_dims, disassembler=disassembler)
        advance(done + 1, len(sources), source.name)
    return found


def _measured(advance: Advance) -> list[Measured]:
    from tools.kernels.attention import HostLibrary, UnsupportedError, ptx_module  # noqa: PLC0415
    from tools.kernels.evidence import fused, problems  # noqa: PLC0415
    from tools.kernels.evidence.measure import measure  # noqa: PLC0415
    from tools.kernels.evidence.tables import Measured  # noqa: PLC0415

    known = problems.problems()
    dims = sorted({each.head_dim for each in known if each.head_dim <= 128})
    library, module = HostLibrary(dims), ptx_module(dims)
    found = []
    for done, problem in enumerate(known):
        shape = f"N {problem.queries}, M {problem.keys}, {problem.spec.heads} x {problem.head_dim}"
        for precision in ("fp16", "int8"):
            try:
                traffic = measure(problem, precision, library, module)
            except UnsupportedError:  # int8 beyond 128 columns
                continue
            needed, tiles = problems.tiles(problem)
            work = problems.work(problem, precision)
            found.append(Measured(problem.name, shape, precision, work, traffic, needed, tiles))
        if problem.name == "zeroleak":
            traffic, work = fused.measure(problem), fused.work(problem)
            name = "zeroleak, its whole block"
            found.append(Measured(name, shape, "fp16", work, traffic, needed, tiles))
        advance(done + 1, len(known), problem.name)
    return found


def _compiler() -> str:
    import subprocess  # noqa: PLC0415

    from tools.kernels.build import find_nvcc  # noqa: PLC0415

    said = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True)
    release = next(line for line in said.stdout.splitlines() if "release" in line)
    return "nvcc " + release.split("release ")[1].split(",")[0]


def _write(docs: Path, parts: dict[str, str]) -> Path:
    from metal_edge.errors import MissingInputError  # noqa: PLC0415
    from metal_edge.files import write_text  # noqa: PLC0415
    from tools.bench.page import replace_part  # noqa: PLC0415

    path = docs / PAGE
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist", "restore it from git")
    text = path.read_text(encoding="utf-8")
    for name, content in parts.items():
        text = replace_part(text, name, content)
    write_text(path, text)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(evidence, "python -m tools.kernels.evidence", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
