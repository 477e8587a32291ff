"""FP32 ONNX -> INT8 ONNX: explicit Q/DQ, static scales, weights symmetric per channel.

Quantised are the layers that hold nearly all bytes and multiplications: linear layers, the
backbone's convolutions with their residual sums, and the search for the nearest remembered token
(`layers.py`). Attention products, normalisation, the residual stream of a transformer, the error
map and its smoothing stay FP32.

Activations are unsigned with a zero point, weights signed: the pair for which ONNX Runtime has
VNNI kernels on x86 (measured here: signed activations are no faster than FP32 there). TensorRT
wants signed activations with zero point 0, from the same ranges; that graph is its back end's.

What a linear layer writes stays a float: nobody reads it as an integer before a GELU, a norm or
a sum, so rounding it would cost accuracy, and time to bring it back. Convolutions hand integers
to each other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod as OrtMethod
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

from metal_edge.errors import DataError
from metal_edge.quantize.calibration import (
    Advance,
    CalibrationMethod,
    Range,
    activation_ranges,
    activations_of,
    check_frames,
)
from metal_edge.quantize.compact import compact
from metal_edge.quantize.layers import (
    PRODUCTS,
    choosing_products,
    group_by_block,
    quantisable,
)
from metal_edge.quantize.tensorrt_qdq import note_amplitudes

_OPERATORS = ["Add", "Clip", "Conv", "Gemm", "MatMul"]


@dataclass(frozen=True)
class Calibrated:
    """A graph ready to be quantised, whole or in parts.

    Attributes:
        model: FP32, shapes inferred; not to be changed.
        groups: block -> names of its quantisable nodes.
        ranges: of every tensor that these read or write.
        zero_range: nodes taken out of the groups because a tensor of theirs is always 0: the
            scale would be 0 and dividing by it undefined. They stay FP32.
    """

    model: onnx.ModelProto
    groups: dict[str, tuple[str, ...]]
    ranges: dict[str, Range]
    zero_range: tuple[str, ...]

    def write(self, destination: Path, blocks: Collection[str]) -> list[str]:
        """Writes the graph with these blocks in INT8; returns the names of their nodes.

        Raises:
            ValueError: no such block, or none at all (the quantiser would take everything).
        """
        layers = [name for block in blocks for name in self.groups[block]] if blocks else []
        if not layers:
            raise ValueError("no layers to quantise")
        work = onnx.ModelProto()
        work.CopyFrom(self.model)
        quantizer: Any = QDQQuantizer(
            work,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=_for_onnxruntime(self.ranges),
            nodes_to_quantize=layers,
            nodes_to_exclude=[],
            op_types_to_quantize=_OPERATORS,
            extra_options={
                "ActivationSymmetric": False,
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": sorted(PRODUCTS),
            },
        )
        quantizer.quantize_model()
        made = quantizer.model.model
        _judge_unrounded(made, set(choosing_products(self.model)) & set(layers))
        compact(made)
        known = activations_of(self.model, layers)
        note_amplitudes(made, {name: self.ranges[name].amplitude for name in known})
        quantizer.model.save_model_to_file(str(destination), False)
        return layers


def calibrate(
    source: Path,
    images: NDArray[np.uint8],
    method: CalibrationMethod,
    advance: Advance | None = None,
) -> Calibrated:
    """Measures activation ranges on frames.

    Args:
        source: FP32 ONNX file with input `image`.
        images: uint8 [N, S, S, 3] real frames of good parts, at least MIN_FRAMES, each once.
        method: how much of a range INT8 covers.
        advance: called with (done, total).

    Raises:
        DataError: unusable frames, an activation that is not finite, or nothing to quantise.
    """
    check_frames(images)
    # With the quantiser's own mark of inferred shapes, or it would infer them for every part.
    model = save_and_reload_model_with_shape_infer(onnx.load(source))
    layers = quantisable(model)
    ranges = activation_ranges(model, layers, images, method, advance)
    dead = zero_range_nodes(model, layers, ranges)
    groups = group_by_block(model, [name for name in layers if name not in dead])
    if not groups:
        raise DataError(
            f"{source} has no layer that INT8 could cover", "build with --precision fp32 or fp16"
        )
    return Calibrated(model, groups, ranges, tuple(dead))


def zero_range_nodes(
    model: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, Range]
) -> list[str]:
    """Those of the named nodes that read or write a tensor of zero range."""
    wanted = set(layers)
    dead = {name for name, span in ranges.items() if span.zero}
    return [
        node.name
        for node in model.graph.node
        if node.name in wanted and dead & {*node.input, *node.output}
    ]


def _judge_unrounded(model: onnx.ModelProto, searches: Collection[str]) -> None:
    """What a search reads is rounded for the search alone.

    The quantiser lets all readers of a tensor read its rounded version. The distance to the token
    that was found must be that of the token as it is; and no integer is NaN.
    """
    producer = {name: node for node in model.graph.node for name in node.output}
    exact = {}
    for node in model.graph.node:
        if node.name in searches:
            quantize = producer[producer[node.input[0]].input[0]]
            exact[node.input[0]] = quantize.input[0]
    for node in model.graph.node:
        if node.name not in searches:
            for index, name in enumerate(node.input):
                node.input[index] = exact.get(name, name)


def _for_onnxruntime(ranges: Mapping[str, Range]) -> TensorsData:
    data = {
        name: TensorData(lowest=np.float32(span.low), highest=np.float32(span.high))
        for name, span in ranges.items()
    }
    return TensorsData(OrtMethod.MinMax, data)
