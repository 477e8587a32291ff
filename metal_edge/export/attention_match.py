"""Finds attention in an ONNX graph and says exactly what it computes, or why that is not ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from metal_edge.export.attention_bias import Bias, read_bias
from metal_edge.export.attention_layout import (
    GraphView,
    Operand,
    RefusedError,
    Result,
    read_operand,
    read_result,
)
from metal_edge.export.masked_attention import MAX_TOKENS, Fill, Mask, MaskedAttentionSpec

FLOATS: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
}
HEAD_STEP, WIDEST_HEAD = 16, 256


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention as the graph has it.

    Attributes:
        name: of the node that multiplies weights and values.
        spec: the operator's attributes for the graph's own type.
        parts: the operator's one, two or three inputs, each read from its first column on.
        result: what the operator has to write.
        head_dim: columns per head.
        dtype: float32 or float16, of inputs and result.
    """

    name: str
    spec: MaskedAttentionSpec
    parts: tuple[Operand, ...]
    result: Result
    head_dim: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Scores:
    """What happens between query times key and Softmax."""

    allowed: Mask
    fill: Fill = Fill.EXCLUDE
    factor: float = 1.0
    slopes: tuple[float, ...] = ()
    columns: int = 0
    masked: bool = False


def read_attention(view: GraphView, softmax: NodeProto) -> Attention:
    """The attention around a Softmax.

    Raises:
        RefusedError: something of it is not what the operator does.
    """
    rank = len(view.shape(softmax.output[0]))
    axis = next((a.i for a in softmax.attribute if a.name == "axis"), -1)
    if rank != 4 or axis not in {-1, rank - 1}:
        raise RefusedError(f"softmax over axis {axis} of {rank}, not the last of 4")
    product, scores = _read_scores(view, softmax)
    mixing = _follow_weights(view, softmax)
    query = read_operand(view, product.input[0], transposed=False)
    key = read_operand(view, product.input[1], transposed=True)
    value = read_operand(view, mixing.input[1], transposed=False)
    if value.factor != 1.0:
        raise RefusedError(f"its values are multiplied by {value.factor:g}")
    result = read_result(view, mixing.output[0])
    _, heads, queries, each = view.shape(mixing.output[0])
    _check_limits(queries, key.tokens, each)
    mask = np.broadcast_to(scores.allowed, (len(scores.allowed), queries, key.tokens))
    spec = MaskedAttentionSpec.of_mask(
        mask,
        heads,
        scale=scores.factor * query.factor * key.factor,
        fill=scores.fill,
        slopes=scores.slopes,
        columns=scores.columns,
    )
    parts = _packed(query, key, value, heads * each)
    kind = view.kind(mixing.output[0])
    if {view.kind(part.source) for part in parts if part.source} != {kind} or kind not in FLOATS:
        raise RefusedError("its tensors are not all float32, or all float16")
    return Attention(mixing.name or mixing.output[0], spec, parts, result, each, FLOATS[kind])


def _check_limits(queries: int, keys: int, each: int) -> None:
    if max(queries, keys) > MAX_TOKENS:
        raise RefusedError(f"it has {queries} queries and {keys} keys, the limit is {MAX_TOKENS}")
    if each % HEAD_STEP or each > WIDEST_HEAD:
        raise RefusedError(f"its head size {each} is not a multiple of 16 up to {WIDEST_HEAD}")


def _packed(query: Operand, key: Operand, value: Operand, width: int) -> tuple[Operand, ...]:
    """The operator's inputs: whole tensors, whose columns are in its order."""
    if key.constant is not None or value.constant is not None:
        raise RefusedError("its keys or values are constant")
    for alone, together in (((), (query, key, value)), ((query,), (key, value))):
        if _side_by_side(together, width) and all(part.columns == width for part in alone):
            return (*alone, together[0])
    if any(part.columns != width for part in (query, key, value)):
        raise RefusedError("its projections are packed in another order than query, key, value")
    return query, key, value


def _side_by_side(parts: tuple[Operand, ...], width: int) -> bool:
    """Whether one tensor holds these and nothing else, in this order."""
    offsets = [part.offset for part in parts]
    in_order = offsets == [width * i for i in range(len(parts))]
    one = len({part.source for part in parts}) == 1
    return one and in_order and parts[0].columns == len(parts) * width


def _read_scores(view: GraphView, softmax: NodeProto) -> tuple[NodeProto, _Scores]:
    """Back from a Softmax to the MatMul of query and key.

    Raises:
        RefusedError: another operator, a mask that is not constant, or scores used elsewhere.
    """
    found = _Scores(np.ones((1, 1, 1), np.bool_))
    name = softmax.input[0]
    while (node := view.producer.get(name)) is not None:
        if view.only_reader(name) is None:
            raise RefusedError(f"its scores {name} are used elsewhere too")
        scaled = view.factor(node)
        if node.op_type == "MatMul":
            return node, found
        if node.op_type == "Cast":
            name = node.input[0]
        elif scaled is not None:
            name, factor = scaled
            found = replace(found, factor=found.factor * factor)
        elif node.op_type in {"Add", "Mul"} and not found.masked:
            name, found = _read_mask(view, node, found)
        else:
            raise RefusedError(f"there is a {node.op_type} between its scores and Softmax")
    raise RefusedError(f"its scores {name} are not computed")


def _read_mask(view: GraphView, node: NodeProto, found: _Scores) -> tuple[str, _Scores]:
    """The unmasked scores' name, and what an Add or Mul of a constant does to them."""
    constants = [view.constant(name) for name in node.input]
    index = 0 if constants[0] is not None else 1
    values = constants[index]
    if values is None:
        raise RefusedError(f"its mask, at {node.name}, is not constant")
    if found.factor != 1.0:
        raise RefusedError(f"it scales scores after {node.name} has masked them")
    shape = view.shape(node.output[0])[1:]
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim > 3 or np.broadcast_shapes(values.shape, shape) != shape:
        raise RefusedError(f"its mask, at {node.name}, has shape {list(values.shape)}")
    name, spread = node.input[1 - index], np.broadcast_to(values, shape)
    if node.op_type == "Mul":
        if not np.isin(spread, (0, 1)).all():
            raise RefusedError(f"{node.name} multiplies its scores by neither 0 nor 1")
        kept = spread == 1
        shared = kept[:1] if (kept == kept[:1]).all() else kept
        return name, replace(found, allowed=shared, fill=Fill.ZERO, masked=True)
    bias = read_bias(spread)
    if not isinstance(bias, Bias):
        raise RefusedError(bias)
    return name, replace(
        found, allowed=bias.allowed, slopes=bias.slopes, columns=bias.columns, masked=True
    )


def _follow_weights(view: GraphView, softmax: NodeProto) -> NodeProto:
    """On from a Softmax to the MatMul of weights and values."""
    name = softmax.output[0]
    while (node := view.only_reader(name)) is not None:
        if node.op_type == "MatMul" and node.input[0] == name:
            return node
        if node.op_type != "Cast":
            raise RefusedError(f"there is a {node.op_type} between its weights and values")
        name = node.output[0]
    raise RefusedError(f"its weights {name} are used elsewhere too")
