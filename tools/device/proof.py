"""What --kernels-only adds: tests, checkers, counters and peers, each if its tool is there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tools.device import counters
from tools.device.gpu_tests import Step, run, run_all
from tools.device.kernels import Kernels

_BATCHES = (1, 8, 64)


def prove(kernels: Kernels, out: Path) -> Kernels:
    """Runs everything; what failed joins `wrong`.

    Args:
        kernels: the benchmark's result.
        out: folder for logs and tables; the plugin's walk is there if it was built.
    """
    programs = {"launches": [sys.executable, "-m", "tools.device.launches"]}
    walk, library = (out / "plugin" / name for name in ("plugin_walk", "libmetal_edge_plugin.so"))
    if walk.is_file():
        programs["plugin"] = [str(walk.resolve()), str(library.resolve())]
    launched = run("every problem once", programs["launches"], out / "launches.log", r".* fp32")
    steps = [launched, *run_all(out, programs)]
    parts = [("Tests and checkers", _list(steps))]
    if launched.wrong is None:
        parts.append(("Counters of Nsight Compute, one launch each", _counters(out)))
        steps.append(peers := _peers(out))
        parts.append(("Beside PyTorch", peers.wrong or peers.said))
    failed = [f"{step.name}: {step.wrong}" for step in steps if step.wrong is not None]
    wrong = "\n".join(each for each in (kernels.wrong, *failed) if each is not None)
    return replace(kernels, wrong=wrong or None, parts=(*kernels.parts, *parts))


def _list(steps: Sequence[Step]) -> str:
    return "\n".join(f"* {'WRONG: ' if s.wrong else ''}{s.name}: {s.said}" for s in steps)


def _counters(out: Path) -> str:
    counted = counters.count(out)
    if isinstance(counted, str):
        return counted
    names = (out / "launches.log").read_text(encoding="utf-8").splitlines()
    if len(names) != len(counted):
        return f"{len(counted)} launches were counted in place of {len(names)}: see ncu.csv"
    return counters.table(names, counted)


def _peers(out: Path) -> Step:
    """In a process of its own: PyTorch reserves memory for good."""
    command = [sys.executable, "-m", "tools.device.torch_peers", "--out", str(out / "peers.json")]
    command += [word for batch in _BATCHES for word in ("--batch", str(batch))]
    log = out / "peers.log"
    log.write_text("", encoding="utf-8")
    step = run("PyTorch", command, log, r"\|.*")
    lines = log.read_text(encoding="utf-8").splitlines()
    table = "\n".join(line for line in lines if line.startswith("|"))
    return Step(step.name, table or step.said, step.wrong)
