"""Where an attention's operands lie in the tensors that projections write.

Exporters arrange heads by ever new chains of Reshape, Transpose, Slice and Squeeze. None of them
is matched by its form: a chain is run on the numbers 0, 1, 2, ... and the result compared with
where each number should have gone. So any chain that selects the heads is understood, and none
that does something else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]

# They move numbers, as their other inputs and attributes say, and change none.
_MOVES = frozenset(
    {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity", "Gather", "Split"}
)
_ANY_BATCH = 2  # images to try a chain with where the graph leaves their number free


class RefusedError(Exception):
    """An attention that the operator does not stand for; says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Operand:
    """Query, key or value as columns of a token-major tensor.

    Attributes:
        source: the tensor's name; "" where the operand is `constant`.
        shape: of the source as it lies, of rank 2 [B * T, C] or 3 [B, T, C], with B images.
        tokens: T.
        offset: first column; head h has the columns from offset + h * head_dim on.
        factor: scalars that the chain multiplies by.
        constant: [1, T, W] in the graph's type, already multiplied by them.
    """

    source: str
    shape: tuple[int, ...]
    tokens: int
    offset: int = 0
    factor: float = 1.0
    constant: Array | None = None

    @property
    def columns(self) -> int:
        """C, or W of a constant."""
        return self.shape[-1]


class GraphView:
    """A graph's producers, readers, constants, shapes and types; the graph stays as it is."""

    def __init__(self, model: ModelProto) -> None:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.nodes = list(graph.node)
        self.producer = {out: node for node in graph.node for out in node.output}
        self.outputs = {value.name for value in graph.output}
        self.readers = Counter(name for node in graph.node for name in node.input if name)
        self._reading: dict[str, NodeProto] = {
            name: node for node in graph.node for name in node.input
        }
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._types: dict[str, Any] = {
            value.name: value.type.tensor_type
            for value in (*graph.input, *graph.value_info, *graph.output)
        }

    def constant(self, name: str) -> Array | None:
        """The values of an initializer or a Constant node; None for what is computed."""
        if name in self._constants:
            return np.asarray(numpy_helper.to_array(self._constants[name]))
        node = self.producer.get(name)
        if node is None or node.op_type != "Constant" or node.attribute[0].name != "value":
            return None
        return np.asarray(numpy_helper.to_array(node.attribute[0].t))

    def only_reader(self, name: str) -> NodeProto | None:
        """The node that alone reads a tensor; None if others do, or it is an output."""
        if self.readers[name] != 1 or name in self.outputs:
            return None
        return self._reading[name]

    def kind(self, name: str) -> int:
        """ONNX's number of a tensor's type; 0 if unknown."""
        if name in self._constants:
            return int(self._constants[name].data_type)
        return int(self._types[name].elem_type) if name in self._types else 0

    def shape(self, name: str) -> tuple[int, ...]:
        """0 where a size is free; empty if nothing is known."""
        if name in self._constants:
            return tuple(self._constants[name].dims)
        if name not in self._types:
            return ()
        return tuple(size.dim_value for size in self._types[name].shape.dim)

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element."""
        value = self.constant(name)
        return float(value.ravel()[0]) if value is not None and value.size == 1 else None

    def factor(self, node: NodeProto) -> tuple[str, float] | None:
        """What a Mul or Div by a scalar constant scales, and by how much."""
        if node.op_type == "Mul":
            for source, other in (node.input, reversed(node.input)):
                value = self.scalar(other)
                if value is not None:
                    return source, value
        if node.op_type == "Div":
            value = self.scalar(node.input[1])
            if value:
                return node.input[0], 1.0 / value
        return None

    def moves(self, node: NodeProto) -> bool:
        """Whether a node only moves the numbers of its first input, in a way that is fixed."""
        fixed = all(self.constant(name) is not None for name in node.input[1:] if name)
        return node.op_type in _MOVES and not node.domain and fixed

    def run(self, node: NodeProto, data: Array, output: str) -> Array:
        """What a node of `moves` makes of other numbers."""
        feeds: dict[Any, Any] = {name: self.constant(name) for name in node.input[1:] if name}
        (result,) = ReferenceEvaluator(node).run([output], {**feeds, node.input[0]: data})
        return np.asarray(result)


def read_operand(view: GraphView, name: str, *, transposed: bool) -> Operand:
    """Finds where an operand of a batched MatMul [B, heads, T, D] comes from.

    Args:
        view: the graph.
        name: the operand.
        transposed: it is [B, heads, D, T], a key.

    Raises:
        RefusedError: it is not made of a token-major tensor's columns, head by head.
    """
    shape = view.shape(name)
    if len(shape) != 4 or not all(shape[1:]):
        raise RefusedError(f"{name} has shape {list(shape)}, not [batch, heads, tokens, width]")
    values = view.constant(name)
    if values is not None:
        if len(values) != 1:
            raise RefusedError(f"{name} is a constant for {len(values)} images")
        columns = _token_major(values.swapaxes(2, 3) if transposed else values)
        return Operand("", columns.shape, columns.shape[1], constant=columns)
    _, heads, tokens, each = shape if not transposed else (*shape[:2], shape[3], shape[2])
    width, batch = heads * each, shape[0] or _ANY_BATCH
    for source, steps, factor in _sources(view, name):
        found = _source_shape(view.shape(source), batch, tokens)
        if found is None:
            continue
        data = np.arange(math.prod(found), dtype=np.int64).reshape(found)
        token_rows = data.reshape(batch, tokens, found[-1])
        try:
            for node, output in steps:
                data = view.run(node, data, output)
        except (ValueError, IndexError):  # this source has another batch than it was tried with
            continue
        if data.shape != (batch, *shape[1:]):
            continue
        moved = data.swapaxes(2, 3) if transposed else data
        offset = int(moved.flat[0])
        if offset + width <= found[-1] and np.array_equal(
            _token_major(moved), token_rows[:, :, offset : offset + width]
        ):
            return Operand(source, found, tokens, offset, factor)
    raise RefusedError(f"{name} is not arranged by heads from one projection")


def _sources(
    view: GraphView, name: str
) -> Iterator[tuple[str, Sequence[tuple[NodeProto, str]], float]]:
    """Tensors that `name` is moved from, farthest first; moves from there to it, and factors."""
    found: list[tuple[str, list[tuple[NodeProto, str]], float]] = [(name, [], 1.0)]
    steps: list[tuple[NodeProto, str]] = []
    factor = 1.0
    while (node := view.producer.get(name)) is not None:
        scaled = view.factor(node)
        if scaled is not None:
            factor *= scaled[1]
            if len(view.shape(scaled[0])) != len(view.shape(name)):
                break  # broadcasting has made more of it
            name = scaled[0]
        elif view.moves(node):
            steps = [(node, name), *steps]
            name = node.input[0]
        else:
            break
        found.append((name, steps, factor))
    return reversed(found)


def _source_shape(shape: tuple[int, ...], batch: int, tokens: int) -> tuple[int, ...] | None:
    """The shape of a token-major tensor with that many images, or None if it cannot be one."""
    if len(shape) == 2 and shape[1]:
        return (batch * tokens, shape[1]) if shape[0] in {0, batch * tokens} else None
    if len(shape) == 3 and shape[2] and shape[1] in {0, tokens}:
        return (batch, tokens, shape[2])
    return None


def _token_major(heads: Array) -> Array:
    """[B, heads, T, D] -> [B, T, heads * D]."""
    batch, count, tokens, each = heads.shape
    return np.ascontiguousarray(heads.transpose(0, 2, 1, 3)).reshape(batch, tokens, count * each)


@dataclass(frozen=True, slots=True)
class Result:
    """The tensor that takes the attention's result.

    Attributes:
        name: what to write.
        shape: without its first size, which the number of images decides.
        passed: names of the tensors before it that hold the same numbers and are then gone.
    """

    name: str
    shape: tuple[int, ...]
    passed: tuple[str, ...]


def read_result(view: GraphView, name: str) -> Result:
    """Follows a MatMul's output [B, heads, N, D] to where it lies by tokens, [.., heads * D].

    Raises:
        RefusedError: its heads are not put side by side again, or others read it before.
    """
    shape = view.shape(name)
    if len(shape) != 4 or not all(shape[1:]):
        raise RefusedError(f"{name} has shape {list(shape)}, not [batch, heads, tokens, width]")
    batch = shape[0] or _ANY_BATCH
    data = np.arange(batch * math.prod(shape[1:])).reshape(batch, *shape[1:])
    wanted = _token_major(data)
    passed = [name]
    # After the Transpose all lies in order already; the Reshape behind it goes as well.
    while not (data.ndim < 4 and np.array_equal(data.ravel(), wanted.ravel())):
        node = view.only_reader(name)
        if node is None or not view.moves(node) or node.input[0] != name:
            raise RefusedError(f"the heads of {passed[0]} are not put side by side again")
        data = view.run(node, data, node.output[0])
        name = node.output[0]
        passed.append(name)
    return Result(name, data.shape[1:], tuple(passed))
