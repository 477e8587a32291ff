"""Precision written into the graph: FP16 casts, or INT8 Q/DQ; proven against FP32."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metal_edge.errors import MetalEdgeError
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.fp16 import convert_fp16
from metal_edge.quantize.int8 import calibrate
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


class EnginePrecision(StrEnum):
    """Arithmetic of the network's linear layers."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class ParityError(MetalEdgeError):
    """A converted graph does not say what its source says."""


# Largest median relative score change against FP32. FP16 keeps 11 bits through some fifteen
# layers; INT8 adds a reconstruction noise floor that the threshold, calibrated afterwards on
# this very graph, absorbs. Beyond that the conversion changed the model.
SCORE_TOLERANCE = {EnginePrecision.FP16: 0.02, EnginePrecision.INT8: 0.25}
# Smallest correlation of the maps, over all pixels of all images.
MAP_CORRELATION = {EnginePrecision.FP16: 0.999, EnginePrecision.INT8: 0.95}


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of a converted graph with FP32 on real images."""

    images: int
    median_score_change: float
    map_correlation: float

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "images": self.images,
            "median_score_change": round(self.median_score_change, 6),
            "map_correlation": round(self.map_correlation, 6),
        }


def write_precision(
    source: Path,
    destination: Path,
    precision: EnginePrecision,
    calibration: NDArray[np.uint8],
) -> dict[str, Any]:
    """Writes `source` at another precision.

    Args:
        source: FP32 ONNX file.
        destination: file to write.
        precision: wanted arithmetic.
        calibration: uint8 [N, S, S, 3] frames for INT8 scales.

    Returns:
        What was done, for the manifest.

    Raises:
        DataError: too few calibration frames.
    """
    if precision is EnginePrecision.FP32:
        destination.write_bytes(source.read_bytes())
        return {}
    if precision is EnginePrecision.INT8:
        calibrated = calibrate(source, calibration, CalibrationMethod.MINMAX)
        layers = calibrated.write(destination, calibrated.groups)
        return {
            "calibration_frames": len(calibration),
            "quantized_layers": len(layers),
            "method": "min-max; activations uint8, weights int8 symmetric per channel",
        }
    return {"fp32_islands": [i.as_dict() for i in convert_fp16(source, destination)]}


def check_parity(
    source: Path, converted: Path, precision: EnginePrecision, images: NDArray[np.uint8]
) -> Parity:
    """Runs both graphs on `images` (uint8 [N, S, S, 3]) and compares scores and maps.

    Raises:
        ParityError: they differ by more than this precision's tolerance.
    """
    changes, before_maps, after_maps = [], [], []
    with OnnxRuntimeRunner(source) as before, OnnxRuntimeRunner(converted) as after:
        for image in images:
            a, b = before.run(image[None])[0], after.run(image[None])[0]
            changes.append(abs(b.score - a.score) / max(abs(a.score), 1e-12))
            before_maps.append(a.anomaly_map[::4, ::4].ravel())
            after_maps.append(b.anomaly_map[::4, ::4].ravel())
    correlation = float(np.corrcoef(np.concatenate(before_maps), np.concatenate(after_maps))[0, 1])
    parity = Parity(len(images), float(np.median(changes)), correlation)
    if precision is EnginePrecision.FP32:
        return parity
    agrees = (
        parity.median_score_change <= SCORE_TOLERANCE[precision]
        and parity.map_correlation >= MAP_CORRELATION[precision]
    )
    if not agrees:  # also when a number is NaN
        raise ParityError(
            f"{precision} differs from fp32: median score change"
            f" {parity.median_score_change:.3f} (limit {SCORE_TOLERANCE[precision]}), map"
            f" correlation {parity.map_correlation:.4f} (limit {MAP_CORRELATION[precision]})",
            "train longer, give more varied images, or build with --precision fp16 or fp32",
        )
    return parity
