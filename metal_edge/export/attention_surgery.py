"""Attention in an ONNX graph -> one MaskedAttention node, which the TensorRT plugin runs.

MatMul, mask, Softmax, MatMul and the reshapes and transposes around them become one node that
reads projections as they were written. What is not recognised exactly stays as it is, with a
reason. The graph must be at its final precision (as exported, or as `quantize.fp16` or
`quantize.tensorrt_qdq` wrote it): calibrate first, then replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from metal_edge.export.attention_layout import Array, GraphView, Operand, RefusedError
from metal_edge.export.attention_match import Attention, read_attention
from metal_edge.export.graph import sort_nodes
from metal_edge.export.masked_attention import VERSION, Int8Scales
from metal_edge.export.operator_node import DOMAIN
from metal_edge.quantize.tensorrt_qdq import least_scale, read_amplitudes

_WIDEST_INT8_HEAD = 128
_HIGHEST = 127
# Whose scale are the operator's q, k and v, by the number of its inputs.
_SCALE_OF = {1: (0, 0, 0), 2: (0, 1, 1), 3: (0, 1, 2)}


@dataclass(frozen=True, slots=True)
class Replaced:
    """One attention that is a MaskedAttention now.

    Attributes:
        node: name of the new node.
        dtype: "float32", "float16" or "int8", of its tensors.
        queries, keys, heads, head_dim: its size.
        allowed: share of the mask's bits that are 1.
    """

    node: str
    dtype: str
    queries: int
    keys: int
    heads: int
    head_dim: int
    allowed: float


@dataclass(frozen=True, slots=True)
class Surgery:
    """What was done.

    Attributes:
        model: the new graph; a copy of the old one where nothing was replaced.
        replaced: in topological order.
        refused: for each attention that stays, its Softmax and the reason.
    """

    model: ModelProto
    replaced: tuple[Replaced, ...]
    refused: tuple[str, ...]


def replace_attention(model: ModelProto, *, int8: bool = True) -> Surgery:
    """Puts MaskedAttention in the place of every attention that it stands for exactly.

    Args:
        model: left as it is.
        int8: where calibration has left ranges, give the operator int8 tensors, if all of its
            operands have a range and its heads are narrow enough.
    """
    edited = ModelProto()
    edited.CopyFrom(model)
    if any(a.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS} for a in _attributes(edited)):
        return Surgery(edited, (), ("the graph has branches or loops",))
    view = GraphView(edited)
    editor = _Editor(edited, read_amplitudes(edited) if int8 else {})
    replaced: list[Replaced] = []
    refused: list[str] = []
    for softmax in (node for node in view.nodes if node.op_type == "Softmax"):
        try:
            replaced.append(editor.put(read_attention(view, softmax)))
        except RefusedError as reason:
            refused.append(f"{softmax.name}: {reason}")
    if replaced:
        editor.finish()
    return Surgery(edited, tuple(replaced), tuple(refused))


def _attributes(model: ModelProto) -> list[AttributeProto]:
    return [attribute for node in model.graph.node for attribute in node.attribute]


class _Editor:
    """Replaces attentions in a graph in place; nothing is valid before `finish`."""

    def __init__(self, model: ModelProto, amplitudes: Mapping[str, float]) -> None:
        self._model = model
        self._amplitudes = amplitudes
        self._added: list[NodeProto] = []
        self._written: set[str] = set()  # tensors that have a new producer
        self._done: set[str] = set()  # new tensors that several attentions may read

    def put(self, attention: Attention) -> Replaced:
        """Adds the node for one attention."""
        name, spec, result = f"{attention.name}_masked", attention.spec, attention.result
        scales = self._scales(attention)
        inputs = [
            self._input(name, part, None if scales is None else scales[index])
            for index, part in enumerate(attention.parts)
        ]
        direct = len(result.shape) == 2
        tokens = result.name if direct else f"{name}_tokens"
        if scales is None:
            self._added.append(spec.node(inputs, tokens, name))
        else:
            q, k, v = (float(scales[i]) for i in _SCALE_OF[len(inputs)])
            spec = replace(spec, int8=Int8Scales(q, k, v, float(scales[-1])))
            self._added.append(spec.node(inputs, f"{name}_int8", name))
            self._quantise("DequantizeLinear", f"{name}_int8", tokens, scales[-1])
        if not direct:
            self._reshape(tokens, (-1, *result.shape), result.name)
        self._written.add(result.name)
        return Replaced(
            name,
            attention.dtype.name if scales is None else "int8",
            *spec.mask_shape[1:],
            spec.heads,
            attention.head_dim,
            float(spec.allowed.mean()),
        )

    def finish(self) -> None:
        """Drops what nobody reads any more, and puts the nodes in order."""
        rest = [n for n in self._model.graph.node if self._written.isdisjoint(n.output)]
        put_nodes(self._model, rest + self._added)

    def _scales(self, attention: Attention) -> list[Array] | None:
        """Scales of the inputs and of the result, or None where int8 cannot be."""
        if attention.head_dim > _WIDEST_INT8_HEAD:
            return None
        spans = [self._amplitude(part) for part in attention.parts]
        named = [n for n in attention.result.passed if n in self._amplitudes]
        spans.append(self._amplitudes[named[-1]] if named else 0.0)
        if min(spans) <= 0:
            return None
        least = least_scale(attention.dtype)
        return [np.asarray(max(s / _HIGHEST, least), attention.dtype) for s in spans]

    def _amplitude(self, part: Operand) -> float:
        if part.constant is None:
            return self._amplitudes.get(part.source, 0.0)
        # Without calibration there is no int8, however well a constant is known.
        return float(np.abs(part.constant).max()) if self._amplitudes else 0.0

    def _input(self, name: str, part: Operand, scale: Array | None) -> str:
        """The name under which the operator finds one of its inputs, [B, T, C]."""
        source = part.source
        if part.constant is not None:
            source = self._constant(f"{name}_query", part.constant)
        if scale is not None:  # also a constant: TensorRT wants no int8 constant but before a DQ
            source = self._quantise("QuantizeLinear", source, f"{source}_attention_int8", scale)
        if len(part.shape) == 2:
            source = self._reshape(source, (-1, part.tokens, part.columns), f"{source}_tokens")
        return source

    def _quantise(self, kind: str, source: str, result: str, scale: Array) -> str:
        pair = [
            self._constant(f"{result}_scale", scale),
            self._constant(f"{result}_zero_point", np.zeros((), np.int8)),
        ]
        return self._add(kind, [source, *pair], result)

    def _reshape(self, source: str, shape: tuple[int, ...], result: str) -> str:
        sizes = self._constant(f"{result}_shape", np.array(shape, np.int64))
        return self._add("Reshape", [source, sizes], result)

    def _add(self, kind: str, inputs: list[str], output: str) -> str:
        if output not in self._done:
            self._added.append(helper.make_node(kind, inputs, [output], f"{output}_{kind}"))
            self._done.add(output)
        return output

    def _constant(self, name: str, values: Array) -> str:
        if name not in self._done:
            self._model.graph.initializer.append(numpy_helper.from_array(values, name))
            self._done.add(name)
        return name


def put_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Gives a graph these nodes, in order, without those and the weights that nobody reads.

    The nodes may be of this package's domain. Shapes of tensors between them are forgotten.
    """
    graph = model.graph
    copies = [NodeProto.FromString(n.SerializeToString()) for n in _needed(graph, nodes)]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    sort_nodes(graph)
    if all(known.domain != DOMAIN for known in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    onnx.checker.check_model(model)


def _needed(graph: GraphProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """Those nodes that an output of the graph depends on."""
    producer = {out: index for index, node in enumerate(nodes) for out in node.output}
    wanted: set[int] = set()
    names = [value.name for value in graph.output]
    while names:
        index = producer.get(names.pop())
        if index is not None and index not in wanted:
            wanted.add(index)
            names += nodes[index].input
    return [node for index, node in enumerate(nodes) if index in wanted]
