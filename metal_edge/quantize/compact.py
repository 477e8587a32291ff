"""Constants of an INT8 graph, stored in fewer bytes and computed with as before.

What stays FP32 for accuracy still need not be stored so: remembered tokens become INT8 with a
scale per token, other large constants (attention biases, positions, whitening) FP16. Casts bring
them back when the session is made, once, as ONNX Runtime folds constants. Of tokens that are INT8
already, because a quantised product finds them, only those that were found are brought back.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 32 << 10  # bytes; below, a cast costs more reading than it saves
_LEVELS = 127
_MOST_FP16 = 65504.0
_LAST = "last_axis"


def compact(model: onnx.ModelProto) -> int:
    """Rewrites the constants of `model` in place; returns how many bytes are gone.

    A constant with a value that FP16 does not reach stays as it is.
    """
    del model.graph.value_info[:]  # shapes of tensors that partly are no more
    saved = _drop_zero_points_of_biases(model.graph)
    _gather_before_dequantising(model.graph)
    tokens = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    nodes, smaller = list[onnx.NodeProto](), list[onnx.TensorProto]()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.nbytes < SMALLEST:
            smaller.append(tensor)
        elif tensor.name in tokens and values.ndim == 2:
            made, casts = _as_int8(tensor.name, values)
            smaller += made
            nodes += casts
            saved += values.nbytes - sum(len(one.raw_data) for one in made)
        elif np.abs(values).max() <= _MOST_FP16:
            stored = f"{tensor.name}_fp16"
            smaller.append(numpy_helper.from_array(values.astype(np.float16), stored))
            nodes.append(_cast(stored, tensor.name))
            saved += values.nbytes // 2
        else:
            smaller.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(smaller)
    _replace_nodes(model.graph, [*nodes, *model.graph.node])
    return saved


def _drop_zero_points_of_biases(graph: onnx.GraphProto) -> int:
    """Those that are 0 need not be said: of an int32 bias they take as many bytes as it does."""
    zeros = {
        tensor.name: len(tensor.raw_data)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT32 and not numpy_helper.to_array(tensor).any()
    }
    dropped = set()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) > 2 and node.input[2] in zeros:
            dropped.add(node.input.pop())
    kept = [tensor for tensor in graph.initializer if tensor.name not in dropped]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return sum(zeros[name] for name in dropped)


def _gather_before_dequantising(graph: onnx.GraphProto) -> None:
    """Rows of an INT8 constant with a scale per row: gathered first, then multiplied.

    The other way round, as the quantiser leaves it, a run-time multiplies all rows every time.
    """
    constants = {tensor.name for tensor in graph.initializer}
    rows = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and any(a.name == "axis" and a.i == 0 for a in node.attribute)
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        source = rows.get(node.input[0]) if node.op_type == "Gather" else None
        nodes += [node] if source is None else _scaled_rows(node, source)
    if len(nodes) > len(graph.node):
        graph.initializer.append(numpy_helper.from_array(np.array([-1]), _LAST))
    _replace_nodes(graph, nodes)


def _scaled_rows(gather: onnx.NodeProto, source: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The gathered levels times their rows' scales."""
    stored, scale = source.input[:2]
    found, index = gather.output[0], gather.input[1]
    levels, factors, column = f"{found}_levels", f"{found}_scales", f"{found}_column"
    return [
        helper.make_node("Gather", [stored, index], [f"{found}_int8"], name=gather.name, axis=0),
        _cast(f"{found}_int8", levels),
        helper.make_node("Gather", [scale, index], [factors], name=f"{factors}_rows", axis=0),
        helper.make_node("Unsqueeze", [factors, _LAST], [column], name=f"{column}_made"),
        helper.make_node("Mul", [levels, column], [found], name=f"{found}_restored"),
    ]


def _as_int8(
    name: str, values: NDArray[np.float32]
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """Rows as INT8 and their scales, and the nodes that multiply them again."""
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) / _LEVELS, np.float32(1e-12))
    levels = np.rint(values / scale).astype(np.int8)
    stored, scales, cast = f"{name}_int8", f"{name}_scale", f"{name}_levels"
    tensors = [
        numpy_helper.from_array(levels, stored),
        numpy_helper.from_array(scale.astype(np.float32), scales),
    ]
    # Not DequantizeLinear, which ONNX Runtime would compute again for every frame.
    product = helper.make_node("Mul", [cast, scales], [name], name=f"{name}_restored")
    return tensors, [_cast(stored, cast), product]


def _cast(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}_cast", to=TensorProto.FLOAT)


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
