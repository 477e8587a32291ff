"""Which back end a bundle is built for, and what is missing for the others."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from metal_edge.errors import UnavailableError

_GPU_NODES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu/igpu0/channel")


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A back end's name, and the reason in one sentence for the person who asked."""

    backend: str
    reason: str


def choose_backend(wanted: str) -> BackendChoice:
    """Resolves `auto | onnxruntime | tensorrt` on this machine.

    Raises:
        UnavailableError: TensorRT was asked for and cannot be used here; says what is missing.
    """
    if wanted == "onnxruntime":
        return BackendChoice("onnxruntime", "building for ONNX Runtime, as asked")
    missing = missing_for_tensorrt()
    if wanted == "tensorrt":
        raise UnavailableError(
            f"--backend tensorrt cannot be built here: {missing}",
            "use --backend onnxruntime; the bundle's ONNX file carries the precision",
        )
    return BackendChoice("onnxruntime", f"{missing}: building the bundle for ONNX Runtime")


def missing_for_tensorrt() -> str:
    """What keeps this machine from building a TensorRT plan, in a few words."""
    if not any(Path(node).exists() for node in _GPU_NODES):
        return "no NVIDIA GPU found"
    if importlib.util.find_spec("tensorrt") is None:
        return "the tensorrt Python package is not installed"
    return "this version does not build TensorRT plans yet"
