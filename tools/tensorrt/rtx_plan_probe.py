"""Runs metal_edge's own builder on TensorRT-RTX: a child process of `rtx`.

    python rtx_plan_probe.py model.onnx     # one JSON object on standard output

`build_plan` takes the package as an argument, and RTX has the same interface, so the code that
will run on a Jetson runs here. One thing is added: without a GPU, a builder must be told for
which one to build.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from metal_edge.errors import MetalEdgeError
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions, build_plan

_WORKSPACE_MIB = 256


def main() -> None:
    """Builds argv[1]; tells the plan's size, the error meant for the user, phases and log."""
    phases: dict[str, int] = {}

    def report(phase: str, done: int, _total: int) -> None:
        phases[phase] = done

    log = BuildLog(report)
    answer: dict[str, Any] = {"bytes": 0, "error": ""}
    options = BuildOptions(workspace_mib=_WORKSPACE_MIB)
    try:
        answer["bytes"] = len(build_plan(for_sm86(), Path(sys.argv[1]), options, log))
    except MetalEdgeError as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    json.dump(answer | {"phases": phases, "log": log.text}, sys.stdout)


def for_sm86() -> Any:
    """TensorRT-RTX under TensorRT's name, whose builders build for SM 8.6."""
    trt: Any = importlib.import_module("tensorrt_rtx_bindings")

    class Builder(trt.Builder):  # type: ignore[misc]  # the package is untyped
        def create_builder_config(self) -> Any:
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM86, 0)
            return config

    return SimpleNamespace(**(vars(trt) | {"Builder": Builder}))


if __name__ == "__main__":
    main()
