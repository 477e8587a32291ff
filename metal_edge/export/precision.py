"""Precision written into the graph: FP16 casts, or INT8 Q/DQ."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.fp16 import convert_fp16, fp32_islands
from metal_edge.quantize.int8 import Calibrated, calibrate
from metal_edge.quantize.layers import FP32_HEAD, PRODUCTS, convolution_nodes
from metal_edge.quantize.rounding import plain_fp16, plain_int8

_HEAD = "quantised, the first block costs the map most of what INT8 costs it and brings no speed"
_ZERO_RANGE = "its activations are always 0 on the calibration frames: there is no scale for them"
_OTHER_PRODUCTS = (
    "no layers: the second operand is no weight but comes from the picture, as in attention; few"
    " multiplications"
)
# Why what FP16 keeps in FP32 is not INT8 either.
_ISLANDS = {
    "pixel scaling": "pixels are 8 bits already; the first layer reads them as numbers",
    "normalisation": "one value far from the others would take the scale from all of them",
    "softmax": "of 256 steps of its largest weight, most other weights would be 0",
    "error map": "prediction minus target, then squares, a mean, smoothing and the maximum:"
    " nearly equal numbers, of which 8 bits would leave the rounding",
}


class EnginePrecision(StrEnum):
    """Arithmetic of the network's linear layers."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written.

    Attributes:
        notes: for the manifest: which nodes kept a higher precision and why.
        baseline: the source with the same rounding done plainly (`quantize.rounding`); None for
            FP32, which is not rounded.
    """

    notes: dict[str, Any]
    baseline: onnx.ModelProto | None


def write_precision(
    source: Path,
    destination: Path,
    precision: EnginePrecision,
    calibration: NDArray[np.uint8],
    method: CalibrationMethod = CalibrationMethod.MINMAX,
) -> dict[str, Any]:
    """Writes `source` at another precision, INT8 in every block that can have it.

    Args:
        source: FP32 ONNX file.
        destination: file to write.
        precision: wanted arithmetic.
        calibration: uint8 [N, S, S, 3] frames for INT8 scales.
        method: of INT8 calibration.

    Returns:
        What was done, for the manifest.

    Raises:
        DataError: calibration frames that cannot be used.
    """
    if precision is EnginePrecision.FP32:
        return write_fp32(source, destination).notes
    if precision is EnginePrecision.FP16:
        return write_fp16(source, destination).notes
    calibrated = calibrate(source, calibration, method)
    return write_int8(
        calibrated, destination, calibrated.groups, method=method, frames=len(calibration)
    ).notes


def write_fp32(source: Path, destination: Path) -> Conversion:
    """The graph as it is."""
    destination.write_bytes(source.read_bytes())
    return Conversion({}, None)


def write_fp16(source: Path, destination: Path) -> Conversion:
    """FP16 weights and arithmetic outside the FP32 islands."""
    islands = convert_fp16(source, destination)
    kept = [name for island in islands for name in island.nodes]
    return Conversion(
        {"fp32_islands": [island.as_dict() for island in islands]},
        plain_fp16(onnx.load(source), kept),
    )


def write_int8(
    calibrated: Calibrated,
    destination: Path,
    blocks: Collection[str],
    *,
    method: CalibrationMethod,
    frames: int,
    symmetric: bool = False,
) -> Conversion:
    """INT8 in the named blocks, FP32 elsewhere.

    Args:
        calibrated: graph and ranges.
        destination: file to write.
        blocks: among `calibrated.groups`.
        method, frames: how it was calibrated, for the notes.
        symmetric: the baseline rounds activations to signed values with zero point 0.
    """
    layers = calibrated.write(destination, blocks)
    notes = {
        "calibration_frames": frames,
        "quantized_layers": len(layers),
        "method": f"{method}; activations uint8, weights int8 symmetric per channel",
        "fp32_islands": _not_int8(calibrated),
    }
    ranges = calibrated.ranges
    if symmetric:
        ranges = {name: span.symmetric() for name, span in ranges.items()}
    return Conversion(notes, plain_int8(calibrated.model, layers, ranges))


def _not_int8(calibrated: Calibrated) -> list[dict[str, Any]]:
    """What no choice of blocks makes INT8: each node in the first group that claims it."""
    model = calibrated.model
    claimed = {name for names in calibrated.groups.values() for name in names}
    constants = {tensor.name for tensor in model.graph.initializer}
    groups = [
        _kept("stem", _HEAD, convolution_nodes(model)[:FP32_HEAD]),
        _kept("zero range", _ZERO_RANGE, calibrated.zero_range),
    ]
    islands = [island for island in fp32_islands(model) if island.kind in _ISLANDS]
    groups += [_kept(each.kind, _ISLANDS[each.kind], each.nodes) for each in islands]
    products = [n for n in model.graph.node if n.op_type in PRODUCTS]
    between = [n.name for n in products if n.input[1] not in constants]
    groups.append(_kept("other products", _OTHER_PRODUCTS, between))
    for group in groups:
        group["nodes"] = [name for name in group["nodes"] if name not in claimed]
        claimed.update(group["nodes"])
    return [group for group in groups if group["nodes"]]


def fp32_blocks(calibrated: Calibrated, blocks: Collection[str]) -> list[dict[str, Any]]:
    """Blocks that a sweep leaves in FP32, as groups for the manifest."""
    reason = "the sensitivity sweep found it among the costliest, and the accuracy budget needs it"
    return [_kept(block, reason, calibrated.groups[block]) for block in blocks]


def _kept(group: str, reason: str, nodes: Collection[str]) -> dict[str, Any]:
    return {"group": group, "reason": reason, "nodes": list(nodes)}
