"""FP32 ONNX -> FP16 ONNX: casts in the graph, FP32 islands where FP16 would lose the signal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
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
    own = {node.name for node in model.graph.node}
    converted = convert_float_to_float16(model, keep_io_types=True, node_block_list=names)
    _merge_repeated(converted)
    _join_islands(converted, own)
    OnnxModel(converted).topological_sort()  # the converter appends its casts at the end
    onnx.save(converted, destination)
    return islands


def _merge_repeated(model: onnx.ModelProto) -> None:
    """Keeps one of the casts to FP32 that ONNX Runtime before 1.32 adds per reader of a tensor.

    They have one name and one output, which no run-time accepts.
    """
    graph = model.graph
    nodes = {node.output[0]: node for node in reversed(graph.node)}
    shapes = {value.name: value for value in graph.value_info}
    del graph.node[:], graph.value_info[:]
    graph.node.extend(reversed(nodes.values()))
    graph.value_info.extend(shapes.values())


def _join_islands(model: onnx.ModelProto, own: set[str]) -> None:
    """Takes out the casts to FP16 and back that the converter leaves between two FP32 nodes.

    Through them an island's own results would overflow or vanish: a smallest denominator of
    1e-12 became 0, and a vector of zeros divided by its norm NaN.

    Args:
        own: names of the source's nodes, whose casts may be of any type; they stay.
    """
    graph = model.graph
    narrowed = {
        n.output[0]: n.input[0]
        for n in graph.node
        if _casts_to(n, TensorProto.FLOAT16) and n.name not in own
    }
    widened = {n.output[0]: n.input[0] for n in graph.node if _casts_to(n, TensorProto.FLOAT)}
    whole = {out: narrowed[back] for out, back in widened.items() if back in narrowed}
    outputs = {value.name for value in graph.output}
    # An output keeps its name, so the tensor that it was cast from takes it.
    renamed = {whole[out]: out for out in outputs & set(whole)}
    nodes = [node for node in graph.node if node.output[0] not in whole]
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                source = whole.get(name, name)
                names[index] = renamed.get(source, source)
    read = {name for node in nodes for name in node.input} | outputs
    del graph.node[:]
    graph.node.extend(n for n in nodes if n.op_type != "Cast" or n.output[0] in read)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)


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
