"""The command behind `make soak`: a daemon at full rate, and what it holds on to over time."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tools.results.command import run_command

HELP = """Run the daemon at full rate; memory, threads and descriptors must not grow.

Example: python -m tools.bench_daemon.soak --minutes 30 --faults
"""
FLAT = 0.02  # resident memory, last quarter against second quarter
QUARTERS = 4
FAULT_EVERY_S = 20.0
BROKER_AWAY_S = 3.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at one moment, from /proc."""

    at_s: float
    rss_kib: int
    threads: int
    descriptors: int


def sample(pid: int, at_s: float) -> Sample:
    """Raises FileNotFoundError when the process is gone."""
    folder = Path(f"/proc/{pid}")
    lines = (folder / "status").read_text(encoding="ascii", errors="replace").splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    descriptors = len(os.listdir(folder / "fd"))  # noqa: PTH208  (only their number counts)
    rss_kib = int(status["VmRSS"].split()[0])
    return Sample(at_s, rss_kib, int(status["Threads"]), descriptors)


def soak(
    minutes: Annotated[float, typer.Option(min=0.2, help="How long.")] = 30.0,
    faults: Annotated[
        bool, typer.Option("--faults", help="The broker and the camera die now and then.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Report, logs.")] = Path("build/soak"),
    docs: Annotated[
        Path | None, typer.Option(help="Also write the result into performance.md there.")
    ] = None,
) -> None:
    """See HELP."""
    from metal_edge.cli.console import say, say_result  # noqa: PLC0415
    from metal_edge.errors import ExitCode  # noqa: PLC0415
    from tools.bench.page import circumstances, write_part  # noqa: PLC0415
    from tools.bench_daemon.soak_report import judge  # noqa: PLC0415
    from tools.results.run import hooks, machine  # noqa: PLC0415

    shutil.rmtree(out, ignore_errors=True)
    command = os.environ.get("SOAK_COMMAND", "").strip()
    command = command or shlex.join(["python", "-m", "tools.bench_daemon.soak", *sys.argv[1:]])
    samples, end = run(out, minutes * 60, faults)
    table, good = judge(samples, end, faults)
    with hooks() as world:
        facts = circumstances(machine(), world.utc(), command)
    text = f"{table}\n\n{minutes:g} minutes. {facts}"
    (out / "report.md").write_text(text + "\n", encoding="utf-8")
    say_result(text)
    if docs is not None:
        say(str(write_part(docs, "soak", text)))
    if not good:
        raise typer.Exit(ExitCode.FAILURE)


def run(out: Path, seconds: float, faults: bool) -> tuple[list[Sample], dict[str, float]]:
    """Samples each second, and what the last heartbeat and the subscriber counted."""
    from tools.bench_daemon.model import build_bundle  # noqa: PLC0415
    from tools.bench_daemon.rig import (  # noqa: PLC0415
        Daemon,
        Mosquitto,
        Subscriber,
        settings_text,
    )

    bundle = build_bundle(out / "bundle", layers=6, channels=32)
    lost = f", lost_every_s = {FAULT_EVERY_S * 0.7}" if faults else ""
    camera = f'mode = "latest"\nfps = 500\noptions = {{ exposure_ms = 0.0{lost} }}'
    more = f'[outbox]\npath = "{(out / "outbox.sqlite").resolve()}"\n[metrics]\nport = 0\n'
    samples = []
    with (
        Mosquitto(out) as broker,
        Subscriber(broker.port, keep=False) as heard,
        Daemon(out, settings_text(bundle.path, broker.port, camera, more)) as daemon,
    ):
        daemon.armed(heard)
        began, restarts = time.monotonic(), 0
        while (at_s := time.monotonic() - began) < seconds:
            samples.append(sample(daemon.process.pid, at_s))
            if faults and at_s > (restarts + 1) * FAULT_EVERY_S:
                restarts += 1
                broker.kill()
                time.sleep(BROKER_AWAY_S)
                broker.start()
            time.sleep(max(0.0, began + len(samples) - time.monotonic()))
        beat = heard.last_beat
    counts = {"heard": heard.decided, "broker restarts": restarts}
    keys = ("last_decision_seq", "frames_dropped", "events_dropped", "decisions_dropped")
    return samples, {**counts, **{key: float(beat[key]) for key in keys}}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(soak, "python -m tools.bench_daemon.soak", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
