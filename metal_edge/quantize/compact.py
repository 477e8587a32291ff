"""Large FP32 constants of an INT8 graph, stored in fewer bytes and computed with as before.

What stays FP32 for accuracy still need not be stored so: remembered tokens become INT8 with a
scale per token, other large constants (attention biases, positions, whitening) FP16. Casts bring
them back when the session is made, once, as ONNX Runtime folds constants.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from metal_edge.quantize.layers import nodes_after_reconstruction

SMALLEST = 32 << 10  # bytes; below, a cast costs more reading than it saves
_LEVELS = 127
_MOST_FP16 = 65504.0


def compact(model: onnx.ModelProto) -> int:
    """Rewrites the large FP32 constants of `model` in place; returns how many bytes are gone.

    A constant with a value that FP16 does not reach stays as it is.
    """
    remembered = _remembered(model)
    saved, nodes, smaller = 0, list[onnx.NodeProto](), list[onnx.TensorProto]()
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.nbytes < SMALLEST:
            smaller.append(tensor)
        elif tensor.name in remembered:
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
    later = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *later])
    return saved


def _remembered(model: onnx.ModelProto) -> set[str]:
    """Constants that distances are measured to: a matrix of many columns after the error."""
    after = nodes_after_reconstruction(model)
    wide = {
        tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.dims[1] > 2 * tensor.dims[0]
    }
    return {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.name in after and node.input[1] in wide
    }


def _as_int8(
    name: str, values: NDArray[np.float32]
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """Columns as INT8 and their scales, and the nodes that multiply them again."""
    scale = np.maximum(np.abs(values).max(axis=0, keepdims=True) / _LEVELS, np.float32(1e-12))
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
