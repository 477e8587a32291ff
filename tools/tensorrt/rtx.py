"""Builds an ONNX file with TensorRT-RTX, in a process of its own that may die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools.tensorrt.wheels import CACHE, combined

_PROBE = Path(__file__).with_name("rtx_probe.py")
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


def build(graph: Path, cache: Path = CACHE) -> Attempt:
    """Parses and builds `graph`, strongly typed, batch 1 to 16, for SM 8.6.

    Raises:
        UnobtainableError: TensorRT-RTX cannot be had here.
        subprocess.TimeoutExpired: it took over three minutes.
    """
    environment = {"PYTHONPATH": combined("rtx", cache), "PATH": os.environ.get("PATH", "")}
    done = subprocess.run(
        [sys.executable, str(_PROBE), str(graph)],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        return Attempt(aborted=True, errors=done.stderr.strip().splitlines()[-5:])
    found = json.loads(done.stdout)
    for way in ("inputs", "outputs"):
        found[way] = {n: (kind, shape) for n, (kind, shape) in found.get(way, {}).items()}
    return Attempt(**found)
