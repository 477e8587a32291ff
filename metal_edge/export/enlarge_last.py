"""Products of an enlarged map, computed before it is enlarged.

Tokens of a deep backbone level are interpolated from fewer places (an 8 x 8 map to 16 x 16 tokens).
Interpolating is linear and its weights sum to one, so it may as well come after a constant for each
channel and a product with a constant matrix and its bias: the same numbers but for rounding, from
a quarter of the multiplications.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from metal_edge.models.smoothing import enlarging_matrix

_PER_CHANNEL = frozenset({"Add", "Mul", "Sub"})
_CHANNELS = 1  # axis of a map [B, C, h, w]
_TO_TOKENS = [0, 2, 1]  # [B, C, N] -> [B, N, C]

Shape = tuple[int | None, ...]


def enlarge_last(model: onnx.ModelProto) -> int:
    """Rewrites `model` in place; returns how many products read a small map now."""
    graph = _Graph.of(model)
    nodes: list[onnx.NodeProto] = []
    rewritten = 0
    for node in model.graph.node:
        outputs = _outputs(graph, node)
        source = None if outputs is None else _Walk(graph, node.input[0]).back()
        if outputs is None or source is None or not source.pays():
            nodes.append(node)
            continue
        made = _from_small_map(node, source, outputs)
        nodes += made.nodes
        model.graph.initializer.extend(made.constants)
        rewritten += 1
    if rewritten:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
        del model.graph.value_info[:]  # some of them are no more
    return rewritten


@dataclass
class _Graph:
    """What the search asks for, by tensor name."""

    producers: dict[str, onnx.NodeProto]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, Shape]

    @staticmethod
    def of(model: onnx.ModelProto) -> _Graph:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        return _Graph(
            {name: node for node in model.graph.node for name in node.output},
            {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer},
            {v.name: _shape(v) for v in (*inferred.input, *inferred.value_info, *inferred.output)},
        )

    def shape(self, name: str) -> Shape:
        """() where it is not known."""
        return self.shapes.get(name, ())


@dataclass(frozen=True)
class _Source:
    """Where a product's tokens come from.

    Attributes:
        small: the map [B, C, h, w] that is enlarged to `size`.
        steps: what follows: operators with a constant of C numbers, first to last.
    """

    small: str
    channels: int
    before: tuple[int, int]
    size: tuple[int, int]
    steps: tuple[tuple[str, NDArray[np.float32]], ...]

    def pays(self) -> bool:
        """Whether fewer multiplications are left for each of the product's outputs."""
        (h, w), (height, width) = self.before, self.size
        after = h * w * self.channels + height * h * w + height * width * w
        return after < height * width * self.channels


@dataclass
class _Walk:
    """From a product's tokens back to the enlarged map that they are, all channels of it.

    Attributes:
        name: the tensor that the walk has come to.
        start: where the product's channels begin in it.
        tokens: whether its channels come last, [.., C], or after the batch.
    """

    graph: _Graph
    name: str
    start: int = 0
    tokens: bool = True
    steps: list[tuple[str, NDArray[np.float32]]] = field(default_factory=list)

    def back(self) -> _Source | None:
        """None where the tokens are anything else."""
        shape = self.graph.shape(self.name)
        width = shape[-1] if shape else None
        while width is not None and (node := self.graph.producers.get(self.name)) is not None:
            if node.op_type == "Resize" and not self.tokens:
                return self._enlarged(node, width)
            passed = self._past_tokens(node, width) if self.tokens else self._past_map(node)
            if not passed:
                return None
        return None

    def _past_tokens(self, node: onnx.NodeProto, width: int) -> bool:
        """Moves to before a node that keeps channels last, or puts them there."""
        before, after = self.graph.shape(node.input[0]), self.graph.shape(self.name)
        if node.op_type in _PER_CHANNEL:
            values = self.graph.constants.get(node.input[1])
            if values is None or values.ndim > 1 or not before or before[-1] != after[-1]:
                return False
            whole = np.broadcast_to(values, (before[-1] or 0,))
            self.steps.append((node.op_type, whole[self.start : self.start + width]))
        elif node.op_type == "Slice":
            first = _first_channel(self.graph, node)
            if first is None:
                return False
            self.start += first
        elif node.op_type == "Transpose" and _attributes(node).get("perm") == _TO_TOKENS:
            self.tokens = False
        elif node.op_type != "Reshape" or not before or before[-1] != after[-1]:
            return False
        self.name = node.input[0]
        return True

    def _past_map(self, node: onnx.NodeProto) -> bool:
        """Moves to before a node that keeps channels after the batch."""
        if node.op_type == "Reshape":
            before, after = self.graph.shape(node.input[0]), self.graph.shape(self.name)
            self.name = node.input[0]
            return len(before) == 4 and len(after) == 3 and before[:2] == after[:2]
        if node.op_type == "Concat" and _attributes(node)["axis"] == _CHANNELS:
            for part in node.input:
                shape = self.graph.shape(part)
                channels = shape[_CHANNELS] if len(shape) > _CHANNELS else None
                if channels is None:
                    return False
                if self.start < channels:
                    self.name = part
                    return True
                self.start -= channels
        return False

    def _enlarged(self, node: onnx.NodeProto, width: int) -> _Source | None:
        given = _attributes(node)
        small, large = self.graph.shape(node.input[0]), self.graph.shape(self.name)
        as_matrix = (
            given.get("mode") == b"linear"
            and given.get("coordinate_transformation_mode", b"half_pixel") == b"half_pixel"
            and not given.get("antialias", 0)
        )
        if not as_matrix or len(small) != 4 or len(large) != 4 or self.start != 0:
            return None
        (_, channels, h, w), (_, _, height, wide) = small, large
        if channels != width or None in {h, w, height, wide}:
            return None
        before, size = (h or 0, w or 0), (height or 0, wide or 0)
        return _Source(node.input[0], width, before, size, tuple(reversed(self.steps)))


def _outputs(graph: _Graph, node: onnx.NodeProto) -> int | None:
    """How many numbers a product with a constant matrix gives for each token."""
    if node.op_type != "Gemm" or len(node.input) != 3:
        return None
    given = _attributes(node)
    matrix, bias = (graph.constants.get(name) for name in node.input[1:])
    if matrix is None or bias is None or given.get("transA", 0):
        return None
    if not given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0:
        return None
    outputs = int(matrix.shape[0 if given.get("transB", 0) else 1])
    return outputs if bias.shape == (outputs,) else None


def _first_channel(graph: _Graph, node: onnx.NodeProto) -> int | None:
    """Where a slice of neighbouring channels begins, if it is one."""
    given = [graph.constants.get(name) for name in node.input[1:]]
    if len(given) < 3 or any(value is None or value.size != 1 for value in given):
        return None
    start, _, axis, *step = (int(value.item()) for value in given if value is not None)
    last = {-1, len(graph.shape(node.output[0])) - 1}
    return start if start >= 0 and axis in last and step in ([], [1]) else None


def _from_small_map(product: onnx.NodeProto, source: _Source, outputs: int) -> _Made:
    """The small map's product, enlarged along its height, then along its width."""
    (h, w), (height, width) = source.before, source.size
    made = _Made(product.name)
    x = made.reshape(source.small, (-1, source.channels, h * w))
    x = made.node("Transpose", [x], perm=_TO_TOKENS)
    for kind, values in source.steps:
        x = made.node(kind, [x, made.constant(values)])
    x = made.reshape(x, (-1, source.channels))
    # Under its own name, by which its block and precision are found.
    x = made.node("Gemm", [x, *product.input[1:]], name=product.name, **_attributes(product))
    x = made.reshape(x, (-1, h, w * outputs))
    x = made.node("MatMul", [made.constant(enlarging_matrix(height, h).numpy()), x])
    x = made.reshape(x, (-1, w, outputs))
    x = made.node("MatMul", [made.constant(enlarging_matrix(width, w).numpy()), x])
    made.reshape(x, (-1, outputs), result=product.output[0])
    return made


class _Made:
    """New nodes and constants, all named after one that was there."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(
        self, kind: str, inputs: list[str], name: str = "", result: str = "", **attributes: Any
    ) -> str:
        """Adds a node with one output; returns that."""
        own = f"{self._prefix}_small_{len(self.nodes)}"
        output = result or own
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name or own, **attributes))
        return output

    def constant(self, values: NDArray[Any]) -> str:
        """Adds a constant; returns its name."""
        name = f"{self._prefix}_small_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def reshape(self, x: str, shape: tuple[int, ...], result: str = "") -> str:
        """Adds a Reshape."""
        return self.node("Reshape", [x, self.constant(np.array(shape, np.int64))], result=result)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    sizes = value.type.tensor_type.shape.dim
    return tuple(int(size.dim_value) if size.HasField("dim_value") else None for size in sizes)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}
