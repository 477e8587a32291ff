"""Which INT8 graph goes into a bundle for TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metal_edge.quantize.fp16 import convert_fp16
from metal_edge.quantize.tensorrt_qdq import write_tensorrt_int8


def int8_for_tensorrt(source: Path, calibrated: Path) -> dict[str, Any]:
    """Replaces an INT8 graph for ONNX Runtime by the one that TensorRT parses.

    Args:
        source: the FP32 graph, to be FP16 wherever it is not INT8.
        calibrated: its INT8 version; overwritten.

    Returns:
        What was done, for the manifest.
    """
    half = calibrated.with_name(f"{calibrated.name}.fp16")
    try:
        islands = convert_fp16(source, half)
        layers = write_tensorrt_int8(half, calibrated, calibrated)
    finally:
        half.unlink(missing_ok=True)
    return {
        "quantized_layers": layers,
        "activations": "int8 symmetric",
        "elsewhere": "fp16",
        "fp32_islands": [island.as_dict() for island in islands],
    }
