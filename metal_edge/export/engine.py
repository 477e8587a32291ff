"""Which back end a bundle is built for, and what is missing for the others."""

from __future__ import annotations

from dataclasses import dataclass

from metal_edge.errors import UnavailableError
from metal_edge.runtime.plugin import require_plugin
from metal_edge.runtime.tensorrt_load import missing_for_tensorrt


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
    if missing is None:
        how = "as asked" if wanted == "tensorrt" else "which this machine has"
        return BackendChoice("tensorrt", f"building for TensorRT, {how}")
    if wanted == "tensorrt":
        raise UnavailableError(
            f"--backend tensorrt cannot be built here: {missing}",
            "use --backend onnxruntime; the bundle's ONNX file carries the precision",
        )
    return BackendChoice("onnxruntime", f"{missing}: building the bundle for ONNX Runtime")


def check_attention(wanted: str, backend: str) -> None:
    """Refuses `plugin` where it cannot be had, before anything is built.

    Raises:
        UnavailableError: the plugin was asked for and is not there, or the back end has none.
    """
    if wanted != "plugin":
        return
    if backend != "tensorrt":
        raise UnavailableError(
            f"--attention plugin is TensorRT's, and this builds for {backend}",
            "use --attention auto or native",
        )
    require_plugin()
