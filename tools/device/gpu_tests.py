"""The kernels' own tests and NVIDIA's checkers, on this machine's GPU."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from metal_edge.errors import ExitCode
from tools.kernels import build
from tools.kernels.gpu import WHERE

# The tests that go through `GpuLibrary` and `GpuBlock` (the rest of tests/kernels is emulation),
# and the runtime's on CUDA's own memory, streams and graphs.
FILES = (
    "kernels/attention/test_attention_emulated.py",
    "kernels/attention/test_attention_head_dims.py",
    "kernels/attention/test_attention_not_finite.py",
    "kernels/attention/test_attention_torch.py",
    "kernels/block/test_block.py",
    "kernels/block/test_block_torch.py",
    "unit/runtime/test_tensorrt_on_gpu.py",
)
CHECKERS = ("memcheck", "racecheck", "initcheck", "synccheck")
_TIMEOUT_S = 1200
_SHOWN = 30  # lines of what failed
_CORES_EACH = 3
_FOUND = 86  # the exit code that compute-sanitizer is told to use


@dataclass(frozen=True, slots=True)
class Step:
    """One program that was run.

    Attributes:
        name: for the report.
        said: its result in a line.
        wrong: the end of its output if it failed; None if it passed or could not be run.
    """

    name: str
    said: str
    wrong: str | None = None


def run_tests(log: Path) -> Step:
    """Attention and block with the GPU in the emulation's place, and the runtime."""
    tests = build.ROOT / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(tests / name) for name in FILES]
    return run("tests on the GPU", command, log, summary=r"\d+ passed.*|\d+ failed.*|.*error.*")


def run_all(out: Path, programs: Mapping[str, Sequence[str]]) -> list[Step]:
    """The tests, and each of compute-sanitizer's tools over each program, several at a time.

    Args:
        out: folder for the logs.
        programs: command by name.
    """
    works: list[Callable[[], Step]] = [lambda: run_tests(out / "tests.log")]
    checker = _checker()
    if checker is not None:
        works += [
            functools.partial(_check, checker, tool, name, program, out)
            for tool in CHECKERS
            for name, program in programs.items()
        ]
    at_once = max(1, (os.cpu_count() or 1) // _CORES_EACH)
    with ThreadPoolExecutor(at_once) as pool:
        steps = list(pool.map(lambda work: work(), works))
    if checker is None:
        steps.append(Step("compute-sanitizer", "is not installed: nothing was checked"))
    return steps


def _checker() -> str | None:
    name = "compute-sanitizer"
    return shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")


def _check(checker: str, tool: str, name: str, program: Sequence[str], out: Path) -> Step:
    command = [checker, "--tool", tool, "--error-exitcode", str(_FOUND), *program]
    log = out / f"{tool}-{name}.log"
    return run(f"{tool}, {name}", command, log, summary=r".*(ERROR|RACECHECK) SUMMARY.*")


def run(name: str, command: Sequence[str], log: Path, summary: str) -> Step:
    """Runs a program of this repository on the GPU; its output goes to `log`.

    Args:
        name: for the report.
        command: words.
        log: file.
        summary: a pattern of the line that says how it went; the last one counts.

    Returns:
        Its result; status 69, "unavailable", is no failure: something is not installed.
    """
    environment = {**os.environ, WHERE: "gpu"}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=_TIMEOUT_S, check=False, cwd=build.ROOT, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Step(name, f"did not run: {error}", str(error))
    log.write_text(done.stdout, encoding="utf-8")
    lines = done.stdout.splitlines()
    if done.returncode == ExitCode.UNAVAILABLE:
        return Step(name, lines[-1] if lines else "cannot run here")
    found = [line for line in lines if re.fullmatch(summary, line)]
    said = found[-1].strip("= ") if found else f"ended with {done.returncode}"
    return Step(name, said, "\n".join(lines[-_SHOWN:]) if done.returncode else None)
