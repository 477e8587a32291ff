"""The command behind `make bench-daemon`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from tools.results.command import run_command

HELP = """Measure what the daemon adds to a part's latency, and the rate that it sustains.

Example: python -m tools.bench_daemon --seconds 30 --turns 5
"""


def bench(  # noqa: PLR0917  (the command's options)
    bundle: Annotated[
        Path | None, typer.Option(help="For the rate; default: a small network of random weights.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=2, help="Of triggers at 30 a second.")] = 30.0,
    turns: Annotated[int, typer.Option(min=2, help="Of daemon and bare engine.")] = 5,
    turn_s: Annotated[float, typer.Option(min=1, max=4, help="Seconds of a turn.")] = 3.0,
    threads: Annotated[int, typer.Option(min=1, help="Of ONNX Runtime, for the rate.")] = 1,
    out: Annotated[Path, typer.Option(help="Logs, bundles.")] = Path("build/bench-daemon"),
    docs: Annotated[
        Path | None, typer.Option(help="Also write the result into performance.md there.")
    ] = None,
) -> None:
    """See HELP."""
    from metal_edge.bundle import Bundle  # noqa: PLC0415
    from metal_edge.cli.console import say, say_result  # noqa: PLC0415
    from tools.bench.page import circumstances, write_part  # noqa: PLC0415
    from tools.bench_daemon import measure, table  # noqa: PLC0415
    from tools.bench_daemon.model import build_bundle  # noqa: PLC0415
    from tools.results.run import hooks, machine  # noqa: PLC0415

    shutil.rmtree(out, ignore_errors=True)
    command = os.environ.get("BENCH_COMMAND", "").strip()
    command = command or shlex.join(["python", "-m", "tools.bench_daemon", *sys.argv[1:]])
    load = os.getloadavg()[0]
    quick = build_bundle(out / "quick", layers=0, channels=0)
    slow = build_bundle(out / "small", layers=6, channels=64) if bundle is None else None
    say(f"latency: {seconds:g} s of triggers")
    added = measure.added_latency(out / "latency", quick, seconds)
    say(f"rate: {turns} turns of {turn_s:g} s each")
    rate = measure.sustained_rate(
        out / "rate",
        slow or Bundle.open(bundle or out),
        threads=threads,
        turns=turns,
        turn_s=turn_s,
    )
    text = table.as_markdown(added, rate)
    with hooks() as world:
        facts = circumstances(machine(), world.utc(), command)
    facts += f" Load average before: {load:.1f}."
    say_result(f"{text}\n\n{facts}")
    if docs is not None:
        say(str(write_part(docs, "daemon", f"{facts}\n\n{text}")))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(bench, "python -m tools.bench_daemon", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
