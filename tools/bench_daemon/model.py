"""A bundle around a small convolutional network of random weights: some milliseconds a picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from metal_edge.bundle import (
    GOLDEN,
    MODEL,
    THRESHOLDS,
    Bundle,
    Golden,
    GoldenImage,
    Manifest,
    Thresholds,
    describe_files,
    to_json,
    write_manifest,
)
from metal_edge.domain import Preprocess
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

SIZE = 256


def build_bundle(path: Path, layers: int, channels: int) -> Bundle:
    """Writes and opens a bundle for pictures of SIZE x SIZE; no layers: brightness, in no time."""
    (path / "golden").mkdir(parents=True)
    onnx.save(_network(layers, channels), path / MODEL)
    image = np.full((SIZE, SIZE, 3), 90, np.uint8)
    cv2.imwrite(str(path / "golden" / "000.png"), image)
    with OnnxRuntimeRunner(path / MODEL, 1) as runner:
        score = runner.run(image[None])[0].score
    golden = GoldenImage(file="golden/000.png", score=score, good=True)
    tolerance = max(1e-3 * abs(score), 1e-6)
    content = {
        GOLDEN: Golden(tolerance=tolerance, images=(golden,)),
        THRESHOLDS: Thresholds(
            score=10 * abs(score) + 1, false_reject_rate=0.01, calibration_images=200
        ),
    }
    for name, record in content.items():
        (path / name).write_text(to_json(record), encoding="utf-8")
    manifest = Manifest(
        name="random-convolutions",
        version="1",
        created_utc="2026-01-01T00:00:00Z",
        model={"family": "convolutions", "score_share": 0.0},
        precision="fp32",
        backend="onnxruntime",
        preprocess=Preprocess(SIZE, SIZE, SIZE, SIZE),
        files=describe_files(path),
    )
    write_manifest(path, manifest)
    return Bundle.open(path)


def _network(layers: int, channels: int) -> onnx.ModelProto:
    """uint8 [N, H, W, 3] -> mean of the last layer, pooled to a quarter, and its maximum."""
    dice = np.random.default_rng(1)
    constants: dict[str, NDArray[np.generic]] = {
        "scale": np.array(1 / 255, np.float32),
        "channels": np.array([1], np.int64),
        "pixels": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["nchw"], ["c0"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    width = 3
    for i in range(layers):
        shape = (channels, width, 3, 3)
        spread = (9 * width) ** -0.5
        constants[f"w{i}"] = dice.normal(0, spread, shape).astype(np.float32)
        nodes += [
            helper.make_node("Conv", [f"c{i}", f"w{i}"], [f"r{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"r{i}"], [f"c{i + 1}"]),
        ]
        width = channels
    nodes += [
        helper.make_node("ReduceMean", [f"c{layers}", "channels"], ["anomaly_map"], keepdims=0),
        helper.make_node("ReduceMax", ["anomaly_map", "pixels"], ["score"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])]
    side = SIZE // 4
    outputs = [
        helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", side, side]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "convolutions", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model
