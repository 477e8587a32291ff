"""The command behind `make bench`: heavy imports inside, so that --help is quick."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tools.results.command import run_command

HELP = """Measure what the project promises: speed, size, start-up; or count it on paper.

Run it on an idle machine: ratios survive a busy one, seconds do not.

Example: python -m tools.bench --minutes 1 --turns 100
"""


def bench(  # noqa: PLR0917  (the command's options)
    run: Annotated[
        Path | None,
        typer.Option(help="A finished run, with masks; default: train on the simulated line."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Training budget.")] = 1.0,
    turns: Annotated[int, typer.Option(min=5, help="Timed calls of each network.")] = 100,
    starts: Annotated[int, typer.Option(min=1, help="Timed starts of the daemon.")] = 5,
    anomalib: Annotated[
        Path | None,
        typer.Option(help="Virtual environment with anomalib; default: a stand-in for it."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Pictures, run, bundles.")] = Path("build/bench"),
    paper: Annotated[
        bool, typer.Option("--paper", help="Only count bytes and MACs, without measuring.")
    ] = False,
    models: Annotated[
        str | None, typer.Option(help="With --paper: only these, separated by commas.")
    ] = None,
    docs: Annotated[
        Path | None, typer.Option(help="Also write the result into performance.md there.")
    ] = None,
) -> None:
    """See HELP."""
    from metal_edge.cli.console import progress, say, say_result  # noqa: PLC0415
    from tools.bench import lines, page  # noqa: PLC0415
    from tools.results.run import hooks, machine  # noqa: PLC0415

    command = os.environ.get("BENCH_COMMAND", "").strip()
    command = command or shlex.join(["python", "-m", "tools.bench", *sys.argv[1:]])
    with hooks() as world:
        if paper:
            from tools.bench.paper import as_markdown, costs, networks  # noqa: PLC0415

            names = None if models is None else [name.strip() for name in models.split(",")]
            with progress("exporting") as advance:
                step = world.counted(advance)
                content = text = as_markdown(costs(networks(names), step))
        else:
            from tools.bench.run import Effort, measure  # noqa: PLC0415

            found = measure(out, run, anomalib, world, Effort(minutes, turns, starts))
            content, text = lines.as_markdown(found), lines.as_text(found)
        facts = page.circumstances(machine(), world.utc(), command)
    say_result(f"{text}\n\n{facts}")
    if docs is not None:
        say(str(page.write_part(docs, "paper" if paper else "measured", f"{facts}\n\n{content}")))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(bench, "python -m tools.bench", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
