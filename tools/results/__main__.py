"""The command behind `make results`: heavy imports inside, so that --help is quick."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from metal_edge.errors import ExitCode
from tools.results.command import run_command

DATA = Path("../shared/data")

HELP = """Train and measure every model on every data set, and write the results page.

Finished cells are kept: the same command goes on where it was stopped.

Example: python -m tools.results --data ../shared/data --seeds 3 --models metal-features,patchcore
"""


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def results(  # noqa: PLR0917  (the command's options)
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of MVTec-layout sets, or one set. Default: METAL_EDGE_DATA, else"
            " ../shared/data where it exists; the simulated line is always among the sets."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Seeds 0, 1, ... per cell.")] = 3,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Training budget in place of models.toml's.")
    ] = None,
    models: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    sets: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="For training; timing takes 1.")] = 2,
    out: Annotated[Path, typer.Option(help="Cells, runs and reports.")] = Path("build/results"),
    docs: Annotated[Path, typer.Option(help="Where results.md and results/ go.")] = Path("docs"),
    render: Annotated[
        bool, typer.Option("--render", help="Only render results.md from results/results.json.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="Another models.toml (default: the one beside the code).")
    ] = None,
    line_images: Annotated[
        str, typer.Option(help="Simulated line: TRAIN,TEST_GOOD,PER_DEFECT pictures.")
    ] = "200,60,12",
) -> None:
    """See HELP."""
    from tools.results.run import Options, render_docs, run_all  # noqa: PLC0415

    if render:
        render_docs(docs)
        return
    given = data or (
        Path(os.environ["METAL_EDGE_DATA"]) if "METAL_EDGE_DATA" in os.environ else None
    )
    options = Options(
        data=given or (DATA if DATA.is_dir() else None),
        seeds=seeds,
        minutes=minutes,
        models=_names(models),
        sets=_names(sets),
        threads=threads,
        out=out,
        docs=docs,
        config=config,
        line_images=line_images,
        command=os.environ.get(
            "RESULTS_COMMAND", "python -m tools.results " + shlex.join(sys.argv[1:])
        ),
    )
    if not run_all(options):
        raise typer.Exit(ExitCode.FAILURE)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(results, "python -m tools.results", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
