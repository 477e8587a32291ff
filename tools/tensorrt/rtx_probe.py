"""Parses and builds one ONNX file with TensorRT-RTX, on the CPU: the child process of `rtx`.

It runs alone because TensorRT aborts the whole process on some graphs (a plugin's node, for one).
It knows nothing of metal_edge, so that its environment needs nothing but TensorRT-RTX::

    python rtx_probe.py model.onnx     # one JSON object on standard output

TensorRT-RTX compiles ahead of time for a named GPU generation and therefore needs none. SM 8.6 is
the nearest to a Jetson Orin's 8.7 that it offers.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

BATCHES = (1, 4, 16)  # least, usual and largest of the optimisation profile


def main() -> None:
    """Reads argv[1], prints what came of it."""
    json.dump(probe(Path(sys.argv[1]).read_bytes()), sys.stdout)


def probe(graph: bytes) -> dict[str, Any]:
    """Parses and builds a graph in a strongly typed network.

    Returns:
        `parsed`, `built`: bools; `errors`: TensorRT's own words, the parser's with the node;
        and of a parsed graph `inputs`, `outputs` (name -> [type, shape]), `layers`, `seconds`,
        `engine_bytes`.
    """
    trt: Any = importlib.import_module("tensorrt_rtx_bindings")

    class Collector(trt.ILogger):  # type: ignore[misc]
        """Errors of the library itself; it logs from C++, so nothing may be raised here."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # its interface
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    logger = Collector()
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        told = [f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in found]
        return {"parsed": False, "built": False, "errors": told or logger.errors}
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for tensor in inputs:
        shapes = [[size if d == -1 else d for d in tensor.shape] for size in BATCHES]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - started
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {
        "parsed": True,
        "built": plan is not None,
        "errors": logger.errors,
        "inputs": {t.name: [t.dtype.name, list(t.shape)] for t in inputs},
        "outputs": {t.name: [t.dtype.name, list(t.shape)] for t in outputs},
        "layers": network.num_layers,
        "seconds": round(seconds, 2),
        "engine_bytes": 0 if plan is None else plan.nbytes,
    }


if __name__ == "__main__":
    main()
