"""All measurements in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from metal_edge.cli.console import progress, say
from metal_edge.models.checkpoint import load_checkpoint
from metal_edge.training.run import CHECKPOINT
from tools.bench import lines
from tools.bench.case import Case, prepare
from tools.bench.lines import Line
from tools.bench.processes import time_import, time_start
from tools.bench.rival import make_rival
from tools.bench.timing import EAGER, RIVAL, bare, has_vnni, time_networks
from tools.results.fit import Hooks


def measure(
    folder: Path, run: Path | None, hooks: Hooks, *, minutes: float, turns: int, starts: int
) -> list[Line]:
    """Every promise, measured.

    Args:
        folder: for everything that is made.
        run: a finished run, or None to train the default network for `minutes`.
        turns: timed calls of each network.
        starts: timed starts of the daemon, and imports.
    """
    case = prepare(folder, run, minutes)
    return [
        *_networks(case, folder, turns, hooks),
        _start(case, folder, starts, hooks.seconds),
        _import(starts),
    ]


def _networks(case: Case, folder: Path, turns: int, hooks: Hooks) -> list[Line]:
    rival = make_rival(case, folder, hooks)
    model, _ = load_checkpoint(case.run.path / CHECKPOINT)
    with hooks.progress("timing the networks") as advance:
        step = hooks.counted(advance)
        times = time_networks(
            case,
            model,
            None if rival is None else rival.onnx,
            hooks.seconds,
            turns=turns,
            on_turn=lambda done: step(done, turns),
        )
    sizes = {name: b.manifest.files["model.onnx"].size for name, b in case.bundles.items()}
    vnni = has_vnni(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"))
    found = [
        lines.int8_speed(times["fp32"], times["int8"], vnni),
        lines.int8_size(sizes["fp32"], sizes["int8"]),
        lines.against_eager("FP32", times[EAGER], times["fp32"]),
        lines.against_eager("INT8", times[EAGER], times["int8"]),
        lines.overhead("FP32", times[bare("fp32")], times["fp32"]),
        lines.overhead("INT8", times[bare("int8")], times["int8"]),
    ]
    if rival is None:
        say("no comparison with PatchCore: it needs masks, and pictures at its 256 px, whole")
    else:
        found.append(lines.against_rival(times[RIVAL], times["int8"], rival.theirs, rival.ours))
    return found


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
