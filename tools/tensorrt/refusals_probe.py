"""What metal_edge says where TensorRT creates nothing: a child process of `bindings`.

The bindings are real, and the libraries below them give out null for a builder and a runtime, as
NVIDIA's do without a driver or without memory. Standard output: a JSON list of two messages.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from metal_edge.errors import UnavailableError
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions, build_plan
from metal_edge.runtime.tensorrt_engine import TensorRtEngine


def main() -> None:
    """Tries to build and to load."""
    trt = importlib.import_module("tensorrt_bindings")
    log = BuildLog(lambda *_: None)
    json.dump(
        [
            _said(lambda: build_plan(trt, Path("model.onnx"), BuildOptions(), log)),
            _said(lambda: TensorRtEngine(trt, b"a plan", "a plan")),
        ],
        sys.stdout,
    )
    sys.stdout.flush()
    os._exit(0)  # without the libraries, the bindings may crash while they are unloaded


def _said(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except UnavailableError as error:
        return str(error)
    return "it was created"


if __name__ == "__main__":
    main()
