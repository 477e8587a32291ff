"""All measurements in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metal_edge.cli.console import progress, say
from metal_edge.data import load_images
from metal_edge.models.checkpoint import load_checkpoint
from metal_edge.training.run import CHECKPOINT
from tools.bench import lines
from tools.bench.case import Case, prepare
from tools.bench.lines import Line
from tools.bench.processes import time_import, time_start
from tools.bench.rival import SIDE, comparable, contenders, detection, engines, make_rival
from tools.bench.timing import (
    EAGER,
    bare,
    has_vnni,
    one_pinned_thread,
    time_networks,
    time_runners,
)
from tools.results.fit import Hooks

DEFAULT, FAST = "products", "fast"


@dataclass(frozen=True)
class Effort:
    """How long it may take.

    Attributes:
        minutes: training budget of each network.
        turns: timed calls of each network.
        starts: timed starts of the daemon, and imports.
    """

    minutes: float
    turns: int
    starts: int


def measure(
    folder: Path, run: Path | None, anomalib: Path | None, hooks: Hooks, effort: Effort
) -> list[Line]:
    """Every promise, measured.

    Args:
        folder: for everything that is made.
        run: a finished run, or None to train the default network.
        anomalib: a virtual environment with anomalib in it, or None.
    """
    case = prepare(folder, run, effort.minutes, preset=DEFAULT)
    return [
        *_networks(case, effort.turns, hooks),
        *_against_rival(case, folder, anomalib, hooks, effort),
        _start(case, folder, effort.starts, hooks.seconds),
        _import(effort.starts),
    ]


def _networks(case: Case, turns: int, hooks: Hooks) -> list[Line]:
    model, _ = load_checkpoint(case.run.path / CHECKPOINT)
    with hooks.progress("timing the networks") as advance:
        step = hooks.counted(advance)
        times = time_networks(
            case, model, hooks.seconds, turns=turns, on_turn=lambda done: step(done, turns)
        )
    sizes = {name: b.manifest.files["model.onnx"].size for name, b in case.bundles.items()}
    vnni = has_vnni(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"))
    return [
        lines.int8_speed(times["fp32"], times["int8"], vnni),
        lines.int8_size(sizes["fp32"], sizes["int8"]),
        lines.against_eager("FP32", times[EAGER], times["fp32"]),
        lines.against_eager("INT8", times[EAGER], times["int8"]),
        lines.overhead("FP32", times[bare("fp32")], times["fp32"]),
        lines.overhead("INT8", times[bare("int8")], times["int8"]),
    ]


def _against_rival(
    case: Case, folder: Path, anomalib: Path | None, hooks: Hooks, effort: Effort
) -> list[Line]:
    """PatchCore against the fast network, which the bar is for, and the default one."""
    if not comparable(case):
        say("no comparison with PatchCore: it needs masks, and whole pictures")
        return []
    fast = prepare(folder, None, effort.minutes, preset=FAST, data=case.dataset.root)
    rival = make_rival(case, folder, anomalib, hooks)
    ours = {FAST: fast, DEFAULT: case}
    frame = load_images(case.dataset.test[:1], SIDE, SIDE, None)
    with one_pinned_thread(), contenders(rival, ours) as runners:
        with hooks.progress("timing PatchCore") as advance:
            step = hooks.counted(advance)
            times = time_runners(
                runners,
                frame,
                hooks.seconds,
                turns=effort.turns,
                on_turn=lambda done: step(done, effort.turns),
            )
        found = {name: detection(case, runners[name], hooks) for name in ours}
    theirs = {engine: times[engine] for engine in engines()}
    return [
        lines.against_rival(
            lines.Match(
                name,
                theirs,
                times[name],
                rival.detection,
                found[name],
                rival.what,
                rival.anomalib,
            ),
            judged=name == FAST,
        )
        for name in ours
    ]


def _start(case: Case, folder: Path, starts: int, seconds: Callable[[], float]) -> Line:
    """The first start is not counted: it reads everything from the disk."""
    picture = case.dataset.test[0].path
    took = []
    with progress("starting the daemon") as advance:
        for number in range(starts + 1):
            took.append(time_start(case.bundles["int8"], picture, folder / "start", seconds))
            advance(number + 1, starts + 1, "")
    return lines.start(took[1:])


def _import(starts: int) -> Line:
    found = [time_import() for _ in range(starts + 1)]
    return lines.imports([took for took, _ in found[1:]], found[0][1])
