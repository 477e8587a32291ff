"""FP32 ONNX -> INT8 ONNX: explicit Q/DQ, static scales, weights symmetric per channel.

Quantised are the layers that hold nearly all bytes and multiplications: linear layers, and the
backbone's convolutions with their residual sums. Attention products, normalisation, the residual
stream of a transformer, the error map and its smoothing stay FP32.

Activations are unsigned with a zero point, weights signed: the pair for which ONNX Runtime has
VNNI kernels on x86 (measured here: signed activations are no faster than FP32 there). TensorRT
wants signed activations with zero point 0, from the same ranges; that graph is its back end's.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from metal_edge.errors import DataError

MIN_FRAMES = 8
# The backbone's stem and first block (convolution, clip, depthwise, clip, projection) stay FP32:
# quantised too, they cost the anomaly map most of what INT8 costs it (correlation with FP32 .927
# against .985 on the demo's parts) and bring no speed.
FP32_HEAD = 5


@dataclass(frozen=True, slots=True)
class Int8Result:
    """What calibration used and did."""

    frames: int
    quantized_layers: int


class _Frames(CalibrationDataReader):  # type: ignore[misc]
    """Feeds frames one by one and counts what was really consumed."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.consumed: set[str] = set()
        self._frames: Iterator[NDArray[np.uint8]] = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._frames, None)
        if image is None:
            return None
        self.consumed.add(hashlib.sha256(image.tobytes()).hexdigest())
        return {"image": image[None]}


def quantize_int8(source: Path, destination: Path, images: NDArray[np.uint8]) -> Int8Result:
    """Calibrates on frames and writes the quantised graph.

    Args:
        source: FP32 ONNX file with input `image`.
        destination: file to write.
        images: uint8 [N, S, S, 3] real frames of good parts, at least MIN_FRAMES distinct.

    Raises:
        DataError: too few distinct frames.
    """
    distinct = len({image.tobytes() for image in images})
    if distinct < MIN_FRAMES:
        raise DataError(
            f"INT8 calibration has {distinct} distinct frames, it needs {MIN_FRAMES}",
            "record more good parts, or build with --precision fp32",
        )
    reader = _Frames(images)
    model = onnx.load(source)
    layers = [*convolution_nodes(model)[FP32_HEAD:], *linear_layers(model)]
    # onnxsim has folded constants and inferred shapes: tells the quantiser not to advise it.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    options: dict[str, Any] = {"ActivationSymmetric": False, "WeightSymmetric": True}
    # The quantiser leaves working files beside its input; give it a folder that goes away.
    with tempfile.TemporaryDirectory(prefix="metal-edge-int8-") as folder:
        work = Path(folder) / "fp32.onnx"
        onnx.save(model, work)
        quantize_static(
            str(work),
            str(destination),
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=layers,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=options,
        )
    if len(reader.consumed) != distinct:
        raise DataError(
            f"calibration consumed {len(reader.consumed)} of {distinct} distinct frames",
            "report this with the ONNX Runtime version",
        )
    return Int8Result(distinct, len(layers))


def convolution_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of convolutions, their activations, and sums of two convolutional maps."""
    maps: set[str] = set()
    names = []
    for node in model.graph.node:  # in topological order
        from_maps = [name in maps for name in node.input]
        joins = (node.op_type == "Clip" and from_maps[0]) or (
            node.op_type == "Add" and all(from_maps)
        )
        if node.op_type == "Conv" or joins:
            maps.update(node.output)
            names.append(node.name)
    return names


def linear_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the MatMul and Gemm nodes whose second operand is a constant weight of a layer.

    Smoothing matrices are constants too; they multiply from the left or belong to the score's
    postprocessing, which stays FP32: it is told apart by what follows the reconstruction.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    first_after = nodes_after_reconstruction(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in {"MatMul", "Gemm"}
        and node.input[1] in weights
        and node.name not in first_after
    ]


def nodes_after_reconstruction(model: onnx.ModelProto) -> set[str]:
    """Nodes downstream of the subtraction that forms the reconstruction error."""
    reached = {out for node in model.graph.node if node.op_type == "Sub" for out in node.output}
    names = set()
    for node in model.graph.node:  # ONNX nodes are in topological order
        if reached & set(node.input):
            reached |= set(node.output)
            names.add(node.name)
    return names
