"""FP32 ONNX -> FP16 ONNX: casts in the graph, FP32 islands where FP16 would lose the signal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from metal_edge.quantize.layers import nodes_after_reconstruction

_PIXEL_ARITHMETIC = frozenset({"Cast", "Mul", "Add", "Div", "Transpose", "Reshape"})
_NORMALISING = frozenset({"LayerNormalization", "ReduceL2", "Div"})
_NORM_PATH = frozenset({"Clip", "Expand", "Max"})


@dataclass(frozen=True, slots=True)
class Island:
    """Nodes of an FP16 graph that stay FP32, and why.

    Attributes:
        kind: `pixel scaling`, `normalisation`, `softmax`, `error map` or `casts`.
        reason: one sentence.
        nodes: names, in topological order.
    """

    kind: str
    reason: str
    nodes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"group": self.kind, "reason": self.reason, "nodes": list(self.nodes)}


REASONS = {
    "pixel scaling": "0..255 times a scale plus an offset: neighbouring grey levels must stay"
    " apart",
    "normalisation": "a mean of squares overflows FP16 beyond 65504, the smallest denominators"
    " vanish below 6e-8",
    "softmax": "exponentials of masked and unmasked scores, and their sum, span more than FP16's"
    " exponent",
    "error map": "prediction minus target, then squares, a mean, smoothing and the maximum:"
    " nearly equal numbers, of which FP16 would leave the rounding",
    "casts": "conversions to and from other types keep theirs",
}


def convert_fp16(source: Path, destination: Path) -> list[Island]:
    """Writes `source` with FP16 weights and arithmetic; returns what stays FP32."""
    model = onnx.load(source)
    islands = fp32_islands(model)
    names = [name for island in islands for name in island.nodes]
    converted = convert_float_to_float16(model, keep_io_types=True, node_block_list=names)
    OnnxModel(converted).topological_sort()  # the converter appends its casts at the end
    onnx.save(converted, destination)
    return islands


def fp32_islands(model: onnx.ModelProto) -> list[Island]:
    """The nodes that stay FP32 in an FP16 graph, each in the first group that claims it."""
    after = nodes_after_reconstruction(model)
    pixels = _pixel_scaling(model)
    norms = _normalisation(model)
    groups: dict[str, list[str]] = {kind: [] for kind in REASONS}
    for node in model.graph.node:
        if node.name in pixels:
            groups["pixel scaling"].append(node.name)
        elif node.name in after or node.op_type == "Sub":
            groups["error map"].append(node.name)
        elif node.name in norms:
            groups["normalisation"].append(node.name)
        elif node.op_type == "Softmax":
            groups["softmax"].append(node.name)
        elif node.op_type == "Cast":
            groups["casts"].append(node.name)
    return [Island(kind, REASONS[kind], tuple(names)) for kind, names in groups.items() if names]


def _pixel_scaling(model: onnx.ModelProto) -> set[str]:
    """Element-wise arithmetic between the input and the first layer."""
    reached = {value.name for value in model.graph.input}
    names = set()
    for node in model.graph.node:
        if node.op_type in _PIXEL_ARITHMETIC and reached & set(node.input):
            reached |= set(node.output)
            names.add(node.name)
    return names


def _normalisation(model: onnx.ModelProto) -> set[str]:
    """LayerNorm, and vectors divided by their norm, the path of the norm included."""
    norms: set[str] = set()
    names = set()
    for node in model.graph.node:
        on_path = node.op_type in _NORM_PATH and norms & set(node.input)
        if node.op_type in _NORMALISING or on_path:
            names.add(node.name)
        if node.op_type == "ReduceL2" or on_path:
            norms |= set(node.output)
    return names
