"""Tensors that are joined only to be split again: a model hands on several predictions as one."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import numpy_helper


def unjoin(model: onnx.ModelProto) -> int:
    """Lets what reads the parts of a joined tensor read the tensors that were joined.

    Rewrites `model` in place where the parts are those tensors, in size and order.

    Returns:
        How many splits are gone; what nothing reads any more goes with them.
    """
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in known}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    joins = {node.output[0]: node for node in model.graph.node if node.op_type == "Concat"}
    results = {value.name for value in model.graph.output}
    instead: dict[str, str] = {}
    gone = 0
    for node in list(model.graph.node):
        join = joins.get(node.input[0]) if node.op_type == "Split" else None
        if join is None or len(node.input) < 2 or node.input[1] not in constants:
            continue
        if results.intersection(node.output):
            continue
        rank = len(shapes.get(join.output[0], ()))
        axis = _axis(join) % rank if rank else None
        if axis is None or axis != _axis(node) % rank:
            continue
        sizes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if sizes == [_size(shapes, name, axis) for name in join.input]:
            instead.update(zip(node.output, join.input, strict=True))
            model.graph.node.remove(node)
            gone += 1
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
    if gone:
        _drop_unread(model.graph)
    return gone


def _axis(node: onnx.NodeProto) -> int:
    return next((int(one.i) for one in node.attribute if one.name == "axis"), 0)


def _size(shapes: dict[str, Any], name: str, axis: int) -> int | None:
    return int(shapes[name][axis].dim_value) if name in shapes else None


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Joins and constants that nothing reads."""
    results = {value.name for value in graph.output}
    read = results | {name for node in graph.node for name in node.input}
    for node in list(graph.node):
        if node.op_type == "Concat" and node.output[0] not in read:
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in list(graph.initializer):
        if tensor.name not in read:
            graph.initializer.remove(tensor)
