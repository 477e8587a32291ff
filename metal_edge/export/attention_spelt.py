"""MaskedAttention spelt out in ONNX's own operators, so that ONNX Runtime can run it.

Step by step what `masked_attention.plain` does, which is what kernels/README.md promises of a
kernel: scores and softmax in float32, weights rounded to float16 unless the tensors are float32,
int8 results rounded half to even. Products of int8 tensors are exact in float32: of at most 256
values each, they stay below 2^24. Inputs must be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from metal_edge.export.masked_attention import OP, Fill, MaskedAttentionSpec
from metal_edge.export.operator_node import DOMAIN

_FORBIDDEN = np.finfo(np.float32).min  # its exponential is 0 beside any score


def spell_out(model: ModelProto) -> ModelProto:
    """A copy of `model` without MaskedAttention."""
    spelt = ModelProto()
    spelt.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, OP):
            writer = _Writer(node.name)
            _attention(writer, node, MaskedAttentionSpec.from_node(node))
            nodes += writer.nodes
            spelt.graph.initializer.extend(writer.constants)
        else:
            nodes.append(node)
    del spelt.graph.node[:]
    spelt.graph.node.extend(nodes)
    if not any(node.domain == DOMAIN for node in nodes):
        others = [o for o in model.opset_import if o.domain != DOMAIN]
        del spelt.opset_import[:]
        spelt.opset_import.extend(others)
    return spelt


class _Writer:
    """Nodes and constants in the place of one node, named after it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, values: Any) -> str:
        name = f"{self._name}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def many(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        name = f"{self._name}/{len(self.nodes)}"
        outputs = [f"{name}/{index}" for index in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, **attributes))
        return outputs

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.many(kind, inputs, 1, **attributes)[0]

    def floats(self, tensor: str) -> str:
        return self.add("Cast", tensor, to=TensorProto.FLOAT)


def _attention(write: _Writer, node: NodeProto, spec: MaskedAttentionSpec) -> None:
    allowed = write.constant(spec.allowed)
    query, key, value = (_heads(write, part, spec.heads) for part in _parts(write, node))
    scores = write.add("MatMul", query, write.add("Transpose", key, perm=[0, 1, 3, 2]))
    scores = write.add("Mul", scores, _factor(write, query, spec))
    if spec.bias is not None:
        scores = write.add("Add", scores, write.constant(spec.bias.astype(np.float32)))
    other = 0.0 if spec.fill is Fill.ZERO else _FORBIDDEN
    scores = write.add("Where", allowed, scores, write.constant(np.float32(other)))
    weights = write.add("Softmax", scores, axis=-1)
    if spec.fill is Fill.EXCLUDE:  # a row without allowed keys gives zeros
        weights = write.add("Where", allowed, weights, write.constant(np.float32(0)))
    if spec.int8 is None:
        weights = write.add("CastLike", weights, node.input[0])
    else:
        weights = write.add("Cast", weights, to=TensorProto.FLOAT16)
    mixed = write.add("MatMul", write.floats(weights), value)
    mixed = write.add("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = write.add("Reshape", mixed, write.constant(np.array([0, 0, -1], np.int64)))
    if spec.int8 is not None:
        step = np.float32(spec.int8.v) / np.float32(spec.int8.out)
        steps = write.add("Round", write.add("Mul", mixed, write.constant(step)))
        limits = (write.constant(np.float32(-128)), write.constant(np.float32(127)))
        mixed = write.add("Clip", steps, *limits)
    write.nodes.append(helper.make_node("CastLike", [mixed, node.input[0]], node.output, node.name))


def _parts(write: _Writer, node: NodeProto) -> list[str]:
    """Query, key and value of one, two or three inputs."""
    *whole, last = node.input
    packed = 3 - len(whole)
    if packed == 1:
        return [*whole, last]
    return [*whole, *write.many("Split", [last], packed, axis=-1, num_outputs=packed)]


def _heads(write: _Writer, part: str, heads: int) -> str:
    """[B, T, W] -> float32 [B, heads, T, W / heads]."""
    shape = write.constant(np.array([0, 0, heads, -1], np.int64))
    return write.add(
        "Transpose", write.add("Reshape", write.floats(part), shape), perm=[0, 2, 1, 3]
    )


def _factor(write: _Writer, query: str, spec: MaskedAttentionSpec) -> str:
    """What multiplies the scores, float32."""
    scales = np.float32(1)
    if spec.int8 is not None:
        scales = np.float32(spec.int8.q) * np.float32(spec.int8.k)
    if spec.scale is not None:
        return write.constant(np.float32(scales * np.float32(spec.scale)))
    size = write.add("Gather", write.add("Shape", query), write.constant(np.int64(3)))
    root = write.add("Sqrt", write.floats(size))
    return write.add("Div", write.constant(scales), root)
