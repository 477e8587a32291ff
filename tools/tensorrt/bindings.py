"""Asks the real bindings of one TensorRT version, above empty libraries, what they have and do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.tensorrt.stubs import make_stubs
from tools.tensorrt.wheels import CACHE, Wheel, unpacked

_HERE = Path(__file__).parent
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Answer:
    """Names of one version."""

    version: str
    missing: frozenset[str]
    members: frozenset[str]


def ask(wheel: Wheel, chains: Iterable[str], cache: Path = CACHE) -> Answer:
    """Imports the bindings in a process of their own and looks the names up.

    Args:
        wheel: pinned bindings.
        chains: dotted names below the package, e.g. `BuilderFlag.TF32`.
        cache: where wheels and stub libraries are kept.

    Raises:
        UnobtainableError: the wheel cannot be had.
        NoCompilerError: no gcc.
        RuntimeError: the import failed; with what the process said.
    """
    found = _run("names_probe.py", {"chains": sorted(chains)}, wheel, cache)
    return Answer(found["version"], frozenset(found["missing"]), frozenset(found["members"]))


def refusals(wheel: Wheel, cache: Path = CACHE) -> list[str]:
    """What a user reads where TensorRT creates no builder, and where it creates no runtime.

    Raises:
        As `ask`.
    """
    said: list[str] = _run("refusals_probe.py", {}, wheel, cache)
    return said


def _run(probe: str, question: object, wheel: Wheel, cache: Path) -> Any:
    """The answer of a process that can import the bindings, and our own packages."""
    place = unpacked(wheel, cache)
    stubs = make_stubs(place / "tensorrt_bindings" / "tensorrt.so", cache / "stubs" / wheel.folder)
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join([str(place), str(_HERE.parents[1])]),
        "LD_LIBRARY_PATH": str(stubs),
    }
    done = subprocess.run(
        [sys.executable, str(_HERE / probe)],
        input=json.dumps(question),
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{wheel.folder} cannot be imported: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)
