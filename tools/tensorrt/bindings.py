"""Asks the real bindings of one TensorRT version which names they have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.tensorrt.stubs import make_stubs
from tools.tensorrt.wheels import CACHE, Wheel, unpacked

_PROBE = Path(__file__).with_name("names_probe.py")
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
    place = unpacked(wheel, cache)
    stubs = make_stubs(place / "tensorrt_bindings" / "tensorrt.so", cache / "stubs" / wheel.folder)
    environment = {"PYTHONPATH": str(place), "LD_LIBRARY_PATH": str(stubs)}
    done = subprocess.run(
        [sys.executable, str(_PROBE)],
        input=json.dumps({"chains": sorted(chains)}),
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        env={"PATH": os.environ.get("PATH", ""), **environment},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{wheel.folder} cannot be imported: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout)
    return Answer(found["version"], frozenset(found["missing"]), frozenset(found["members"]))
