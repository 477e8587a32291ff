"""A small graph whose activations are known by hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
CHANNELS = 4


def small_graph(gain: float = 1.0, offset: float = 0.0) -> onnx.ModelProto:
    """image -> /255 -> flatten -> Gemm (weight `block.0.weight`, all `gain`) -> error and score.

    Every output of the layer is gain * mean(pixels) + offset.
    """
    pixels = SIDE * SIDE * 3
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "flat": np.array([-1, pixels], np.int64),
        "model.block.0.weight": np.full((pixels, CHANNELS), gain / pixels, np.float32),
        "model.block.0.bias": np.full(CHANNELS, offset, np.float32),
        "model.block.1.weight": np.eye(CHANNELS, dtype=np.float32),
        "model.block.1.bias": np.zeros(CHANNELS, np.float32),
        "target": np.array(0.25, np.float32),
        "map": np.array([-1, 2, 2], np.int64),
        "axes": np.array([1, 2], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        node("Mul", ["float", "scale"], ["unit"], "unit"),
        node("Reshape", ["unit", "flat"], ["pixels"], "flatten"),
        node("Gemm", ["pixels", "model.block.0.weight", "model.block.0.bias"], ["hidden"], "first"),
        node("Gemm", ["hidden", "model.block.1.weight", "model.block.1.bias"], ["out"], "second"),
        node("Sub", ["out", "target"], ["error"], "error"),
        node("Abs", ["error"], ["size"], "abs"),
        node("Reshape", ["size", "map"], ["anomaly_map"], "map"),
        node("ReduceMax", ["anomaly_map", "axes"], ["score"], "score", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", 2, 2]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model
