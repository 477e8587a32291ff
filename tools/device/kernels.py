"""The kernels' part of the device check: benchmark and plugin, built on the device itself.

Whatever is missing for it is said in the report; the engines are checked all the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metal_edge.errors import ExitCode
from metal_edge.runtime import plugin
from tools.kernels import build

_BUILD_TIMEOUT_S = 1800
_BENCH_TIMEOUT_S = 900
_SHOWN_LINES = 12  # of a build that failed
BENCH = "bench_masked_attention"


@dataclass(frozen=True, slots=True)
class Kernels:
    """What became of the kernels on this device.

    Attributes:
        table: the benchmark's text, results checked and timed; None if it did not run.
        result: the same as `kernels/bench/report.cpp` writes it.
        wrong: what was found wrong; None if every result is right, or nothing ran.
        notes: in words: what is missing, what was built, what failed.
        parts: more of the report: title and Markdown.
    """

    table: str | None = None
    result: Mapping[str, Any] | None = None
    wrong: str | None = None
    notes: Sequence[str] = ()
    parts: Sequence[tuple[str, str]] = ()


@dataclass(slots=True)
class _Notes:
    lines: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.lines.append(text.strip())


class _StepError(Exception):
    """A step cannot be done; says why, for the report."""


def check_kernels(
    out: Path,
    architecture: str | None = None,
    *,
    kernels: Path = build.KERNELS,
    options: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Kernels:
    """Builds and runs the benchmark, then builds the plugin if none is installed.

    A plugin that was built here is named in METAL_EDGE_PLUGIN, for this process and its children.

    Args:
        out: for builds and results.
        architecture: compute capability, for example "8.7"; None: CMake's default.
        kernels: the folder of the two CMake projects.
        options: more of CMake's.
        words: arguments for the benchmark.
    """
    out.mkdir(parents=True, exist_ok=True)
    notes = _Notes()
    given = [*options]
    if architecture is not None:
        given.append(f"-DCMAKE_CUDA_ARCHITECTURES={architecture.replace('.', '')}")
    table, result, wrong = _benchmark(kernels, out, given, words, notes)
    walked = _plugin(kernels, out, given, notes)
    told = "; ".join(each for each in (wrong, walked) if each is not None)
    return Kernels(table, result, told or None, tuple(notes.lines))


def _benchmark(
    kernels: Path, out: Path, options: Sequence[str], words: Sequence[str], notes: _Notes
) -> tuple[str | None, Mapping[str, Any] | None, str | None]:
    """Table, result, and what is wrong."""
    try:
        folder = _built(kernels / "bench", out / "bench", options)
    except _StepError as error:
        notes.add(f"The benchmark of the kernels was not built: {error}")
        return None, None, None
    path = out / "bench.json"
    path.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [str(folder / BENCH), "--json", str(path), *words],
            capture_output=True, text=True, timeout=_BENCH_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        notes.add(f"The benchmark of the kernels did not run: {error}")
        return None, None, None
    said = done.stderr.strip()
    if done.returncode == ExitCode.FAILURE:
        return None, None, said
    if done.returncode:
        notes.add(f"The benchmark of the kernels ended with {done.returncode}: {said}")
        return None, None, None
    if said:
        notes.add(said)
    return done.stdout, json.loads(path.read_text(encoding="utf-8")), None


def _plugin(kernels: Path, out: Path, options: Sequence[str], notes: _Notes) -> str | None:
    """Builds it where none is; what the walk through it found wrong."""
    if named := os.environ.get(plugin.VARIABLE):
        notes.add(f"Plugin: {named}, named by {plugin.VARIABLE}.")
    elif installed := next((place for place in plugin.PLACES if place.is_file()), None):
        notes.add(f"Plugin: {installed}, as installed.")
    else:
        try:
            folder = _built(kernels, out / "plugin", [*options, *_headers()])
        except _StepError as error:
            notes.add(f"No plugin, so attention is TensorRT's own: {error}")
            return None
        library = folder / "libmetal_edge_plugin.so"
        if not library.is_file():
            notes.add(f"No plugin, so attention is TensorRT's own: {library} was not made")
            return None
        os.environ[plugin.VARIABLE] = str(library.resolve())
        notes.add(f"Plugin: built here, {library}.")
        return _walked(folder, library, notes)
    return None


def _headers() -> list[str]:
    """Where TensorRT's headers are, if they are not in the system's folders."""
    given = os.environ.get("TENSORRT_INCLUDE_DIR")
    return [f"-DTENSORRT_INCLUDE_DIR={given}"] if given else []


def _walked(folder: Path, library: Path, notes: _Notes) -> str | None:
    """The walk through the plugin as TensorRT would, its numbers on the GPU included."""
    walk = folder / "plugin_walk"
    if not walk.is_file():
        notes.add("The walk through the plugin was not built: tests/kernels is not here.")
        return None
    try:
        done = subprocess.run(
            [str(walk), str(library)], capture_output=True, text=True,
            timeout=_BENCH_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        notes.add(f"The walk through the plugin did not run: {error}")
        return None
    lines = done.stdout.splitlines()
    if done.returncode:
        return f"the plugin's walk: {' '.join(lines[-_SHOWN_LINES:])} {done.stderr.strip()}"
    passed = [line.removeprefix("ok - ") for line in lines if line.startswith("ok - ")]
    notes.add(f"The walk through the plugin, as TensorRT would: {', '.join(passed)} right.")
    return None


def _built(source: Path, folder: Path, options: Sequence[str]) -> Path:
    if shutil.which("cmake") is None:
        raise _StepError("cmake is not installed (apt-get install cmake)")
    compiler: list[str] = []
    if "-DMETAL_EDGE_CUDA=OFF" not in options:
        try:
            compiler.append(f"-DCMAKE_CUDA_COMPILER={build.find_nvcc()}")
        except build.MissingToolError as error:
            raise _StepError(str(error)) from error
    for command in (
        ["cmake", "-S", str(source), "-B", str(folder), *compiler, *options],
        ["cmake", "--build", str(folder), "--parallel"],
    ):
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=_BUILD_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise _StepError(f"building {source} took over {_BUILD_TIMEOUT_S} s") from error
        if done.returncode:
            raise _StepError(_reason(done.stdout))
    return folder


def _reason(said: str) -> str:
    """The part of a build's output that names the first error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if "error" in line.lower()), 0)
    return " ".join(lines[first : first + _SHOWN_LINES])
