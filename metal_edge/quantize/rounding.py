"""The same rounding done plainly: the baseline that a converted graph is judged by.

Whoever writes weights and activations in fewer bits makes an error, however well it is done. How
large that error must be is measured, not guessed: here a second graph is made from the FP32
source by independent, simple means. It stays FP32, but weights and the tensors at the same
places are rounded to the values that the precision has. Converter, scales per tensor, fused
kernels and casts of the graph that will be deployed are other code. If that graph is further
from FP32 than some small multiple of this baseline, its rounding is not the reason
(flash-attention judges its kernels in this way: error <= 2 x that of a plain implementation).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from metal_edge.quantize.calibration import Range
from metal_edge.quantize.layers import PRODUCTS, choosing_products

_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_INT8_LARGEST = 127
_UINT8_LARGEST = 255
Floats = NDArray[np.float32]


def plain_fp16(model: onnx.ModelProto, islands: Collection[str]) -> onnx.ModelProto:
    """FP32 graph whose layers outside `islands` have FP16 weights, inputs and outputs.

    Rounding to FP16 is adding and subtracting nothing that FP32 could not hold, so it is done by
    casts there and back, which ONNX Runtime must not and does not remove (a test checks it).
    """
    kept = set(islands)
    layers = [n.name for n in model.graph.node if n.op_type in _LAYERS and n.name not in kept]

    def cast_pair(tensor: str) -> list[onnx.NodeProto]:
        half, back = f"{tensor}/fp16", f"{tensor}/rounded"
        return [
            helper.make_node("Cast", [tensor], [half], f"{half}/cast", to=TensorProto.FLOAT16),
            helper.make_node("Cast", [half], [back], f"{back}/cast", to=TensorProto.FLOAT),
        ]

    def as_half(values: Floats, _node: onnx.NodeProto) -> Floats:
        return values.astype(np.float16).astype(np.float32)

    return _rounded(model, layers, as_half, cast_pair, unrounded=frozenset())


def plain_int8(
    model: onnx.ModelProto, layers: Collection[str], ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """FP32 graph whose named nodes have weights and activations of 8 bits.

    Weights: 255 values per output channel, symmetric. Activations: 256 values over their range,
    but what linear layers write stays as it is, and what a search for a token reads is rounded
    for that search alone.
    Rounding is spelt out (divide, add, round, clip, and back), not by Q/DQ, which the runtime
    would fuse into the very kernels that are to be judged.
    """
    constants = _Constants()

    def grid(tensor: str) -> list[onnx.NodeProto]:
        span = ranges[tensor]
        scale = np.float32((span.high - span.low) / _UINT8_LARGEST)
        zero = np.float32(round(-span.low / float(scale)))
        steps = [
            ("Div", scale),
            ("Round", None),
            ("Add", zero),
            ("Clip", (np.float32(0), np.float32(_UINT8_LARGEST))),
            ("Sub", zero),
            ("Mul", scale),
        ]
        nodes, current = [], tensor
        for number, (kind, value) in enumerate(steps):
            out = f"{tensor}/rounded" if number == len(steps) - 1 else f"{tensor}/grid{number}"
            values = () if value is None else value if isinstance(value, tuple) else (value,)
            inputs = [current, *(constants.name(v) for v in values)]
            nodes.append(helper.make_node(kind, inputs, [out], f"{out}/node"))
            current = out
        return nodes

    rounded = _rounded(model, layers, _per_channel, grid, unrounded=PRODUCTS)
    rounded.graph.initializer.extend(constants.tensors())
    return rounded


class _Constants:
    """Scalars by value, each once."""

    def __init__(self) -> None:
        self._names: dict[float, str] = {}

    def name(self, value: np.float32) -> str:
        return self._names.setdefault(float(value), f"rounding/constant{len(self._names)}")

    def tensors(self) -> list[onnx.TensorProto]:
        return [
            numpy_helper.from_array(np.array(value, np.float32), name)
            for value, name in self._names.items()
        ]


def _per_channel(values: Floats, node: onnx.NodeProto) -> Floats:
    """255 values, symmetric, per output channel; an all-zero channel stays zero."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    axis = 0 if node.op_type == "Conv" or transposed else values.ndim - 1
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / _INT8_LARGEST, np.float32(1))
    return (np.round(values / scale) * scale).astype(np.float32)


def _rounded(
    model: onnx.ModelProto,
    layers: Collection[str],
    weights: Callable[[Floats, onnx.NodeProto], Floats],
    activations: Callable[[str], list[onnx.NodeProto]],
    unrounded: Collection[str],
) -> onnx.ModelProto:
    """Copies `model` with the weights of `layers` and the tensors around them rounded.

    Args:
        unrounded: kinds of layers whose results stay as they are.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    wanted = set(layers)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.name in wanted and node.op_type in _LAYERS and node.input[1] in constants:
            _round_weight(graph, node, constants[node.input[1]], weights)
    touched = _around(graph, wanted, set(constants), unrounded)
    searches = wanted & set(choosing_products(model))
    judged = {node.input[0] for node in graph.node if node.name in searches}
    outputs = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    present = {value.name for value in graph.input} & touched
    for name in sorted(present):
        nodes += activations(name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in touched and (name not in judged or node.name in searches):
                node.input[index] = f"{name}/rounded"
        nodes.append(node)
        for name in node.output:
            if name in touched - outputs:
                nodes += activations(name)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return result


def _round_weight(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    tensor: onnx.TensorProto,
    rounding: Callable[[Floats, onnx.NodeProto], Floats],
) -> None:
    """In place; two layers that share a weight round it twice to the same values."""
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(rounding(values, node), tensor.name))


def _around(
    graph: onnx.GraphProto, layers: set[str], constants: set[str], unrounded: Collection[str]
) -> set[str]:
    """Tensors that the layers read, and those that they write unless their kind is `unrounded`.

    But for those between a convolution and its clip. The clip's bounds lie within the wider range
    before it, and quantisers know that: only what leaves the clip is rounded.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    touched: set[str] = set()
    for node in graph.node:
        if node.name not in layers:
            continue
        fused = node.op_type == "Conv" and all(
            reader.op_type == "Clip" and reader.name in layers
            for reader in readers.get(node.output[0], [])
        )
        touched |= set(node.output) if not fused and node.op_type not in unrounded else set()
        inputs = [node.input[0]] if node.op_type == "Clip" else list(node.input)
        touched |= {name for name in inputs if name and name not in constants}
    between = {
        node.input[0] for node in graph.node if node.op_type == "Clip" and node.name in layers
    }
    return touched - between
