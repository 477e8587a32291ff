"""Builds ONNX files with TensorRT-RTX, each in a process of its own, which may die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools.tensorrt.wheels import CACHE, combined

_HERE = Path(__file__).parent
_TIMEOUT_S = 180


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one graph; `aborted`: the process died, `errors` is its last output."""

    parsed: bool = False
    built: bool = False
    aborted: bool = False
    errors: list[str] = field(default_factory=list)
    inputs: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    outputs: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    layers: int = 0
    seconds: float = 0.0
    engine_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OwnBuild:
    """What `metal_edge.export.tensorrt_builder.build_plan` made of one graph."""

    bytes: int
    error: str  # as its user reads it; empty if it was built
    phases: dict[str, int]  # outermost phases of the build, and the steps done
    log: str


def build(graph: Path, cache: Path = CACHE) -> Attempt:
    """Parses and builds `graph`, strongly typed, batch 1 to 16, for SM 8.6.

    Raises:
        UnobtainableError: TensorRT-RTX cannot be had here.
        subprocess.TimeoutExpired: it took over three minutes.
    """
    done = _run("rtx_probe.py", graph, cache)
    if done.returncode:
        return Attempt(aborted=True, errors=done.stderr.strip().splitlines()[-5:])
    found = json.loads(done.stdout)
    for way in ("inputs", "outputs"):
        found[way] = {n: (kind, shape) for n, (kind, shape) in found.get(way, {}).items()}
    return Attempt(**found)


def build_own(graph: Path, cache: Path = CACHE) -> OwnBuild:
    """The same by metal_edge's own builder code.

    Raises:
        UnobtainableError, subprocess.TimeoutExpired: as `build`.
        RuntimeError: the process died; with its last words.
    """
    done = _run("rtx_plan_probe.py", graph, cache)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-2000:])
    return OwnBuild(**json.loads(done.stdout))


def _run(probe: str, graph: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": combined("rtx", cache), "PATH": os.environ.get("PATH", "")}
    return subprocess.run(
        [sys.executable, str(_HERE / probe), str(graph)],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment,
    )  # fmt: skip
