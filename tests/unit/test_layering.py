"""The house rules of docs/design.md, checked by reading imports: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metal_edge

PACKAGE = Path(metal_edge.__file__).parent
COMMON = {"errors", "domain", "files"}

# room -> rooms it may import (besides itself, errors and domain)
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "domain": set(),
    "files": set(),
    "settings": set(),
    "imaging": set(),
    "data": {"imaging"},
    "bundle": set(),
    "models": {"imaging"},
    "training": {"models", "data", "evaluation.metrics"},
    "evaluation": {"data", "imaging", "bundle", "runtime"},
    "export": {"models", "bundle", "runtime", "quantize"},
    "quantize": {"data", "imaging", "bundle", "runtime"},
    "runtime": {"bundle"},
    "daemon": {"imaging", "settings", "bundle", "runtime"},
    "demo": {"settings", "imaging", "bundle", "daemon"},
}

# room of the daemon -> rooms of the daemon it may import (besides itself, clock and sdnotify)
DAEMON: dict[str, set[str]] = {
    "cameras": {"deciding"},
    "deciding": set(),
    "line": {"cameras", "deciding", "mqtt", "records", "scheduling"},
    "mqtt": {"deciding", "records"},
    "records": {"deciding"},
    "changeover": {"deciding", "line", "mqtt", "scheduling"},
    "observing": {"deciding", "mqtt"},
}

# heavy or hardware packages -> rooms that may import them
PACKAGES: dict[str, set[str]] = {
    "torch": {"models", "training", "export"},
    "safetensors": {"models", "training"},
    "timm": {"models"},
    "lightning_fabric": {"training"},
    "onnx": {"export", "quantize"},
    "onnxruntime": {"runtime", "quantize"},
    "tensorrt": {"runtime", "export"},
    "pycuda": {"runtime", "export"},
    "cuda": {"runtime", "export"},
    "paho": {"daemon", "demo"},
    "prometheus_client": {"daemon"},
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE or p.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = room_of(path)
    if room in {"cli", "__main__"}:
        return
    allowed = COMMON | ROOMS[room] | {room}
    for name in imports_of(path):
        if not name.startswith("metal_edge."):
            top = name.split(".")[0]
            assert room in PACKAGES.get(top, {room}), f"{room} may not import {top}"
            continue
        inner = name.removeprefix("metal_edge.")
        assert any(inner == a or inner.startswith(a + ".") for a in allowed), (
            f"{room} may not import metal_edge.{inner}"
        )


INNER = [
    p for p in FILES if p.relative_to(PACKAGE).parts[0] == "daemon" and p.parent.name in DAEMON
]


@pytest.mark.parametrize("path", INNER, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_of_the_daemon_imports_only_what_it_may(path: Path) -> None:
    room = path.parent.name
    allowed = DAEMON[room] | {room, "clock", "sdnotify"}
    for name in imports_of(path):
        _, inside, inner = name.partition("metal_edge.daemon.")
        assert not inside or inner.split(".")[0] in allowed, f"{room} may not import {name}"


def test_the_daemon_starts_without_torch() -> None:
    """Imports the daemon in a fresh interpreter where torch cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'safetensors', 'onnxscript', 'onnxsim', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import metal_edge.daemon.service, metal_edge.cli.app\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
