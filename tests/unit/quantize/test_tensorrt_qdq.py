"""TensorRT's INT8 graph: its rules hold, its numbers are calibration's, its results FP32's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from support.small_graph import small_graph

from metal_edge.errors import DataError
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.fp16 import convert_fp16
from metal_edge.quantize.int8 import calibrate
from metal_edge.quantize.tensorrt_qdq import (
    Calibration,
    QuantisedLayer,
    read_amplitudes,
    read_calibration,
    tensorrt_int8,
    write_tensorrt_int8,
)
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

LEAST_HALF = 2.0**-14  # smallest normal FP16


def constants_of(model: ModelProto) -> dict[str, NDArray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def nodes_of(model: ModelProto, kind: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


class Files:
    """The small graph in FP32, FP16 and as calibrated for ONNX Runtime."""

    def __init__(self, folder: Path, pictures: NDArray[np.uint8], gain: float = 2.0) -> None:
        self.fp32, self.fp16, self.ort, self.made = (folder / f"{i}.onnx" for i in range(4))
        onnx.save(small_graph(gain, offset=-gain / 2), self.fp32)
        convert_fp16(self.fp32, self.fp16)
        calibrated = calibrate(self.fp32, pictures, CalibrationMethod.MINMAX)
        calibrated.write(self.ort, calibrated.groups)
        self.ranges = calibrated.ranges


@pytest.fixture
def files(tmp_path: Path, pictures: NDArray[np.uint8]) -> Files:
    return Files(tmp_path, pictures)


@pytest.mark.parametrize(
    ("base", "kind"), [("fp32", np.dtype(np.float32)), ("fp16", np.dtype(np.float16))]
)
def test_the_rules_of_tensorrt_hold(files: Files, base: str, kind: np.dtype) -> None:
    assert write_tensorrt_int8(getattr(files, base), files.ort, files.made) == 2
    model = onnx.load(files.made)
    onnx.checker.check_model(model, full_check=True)
    constants = constants_of(model)
    quantising = nodes_of(model, "QuantizeLinear") + nodes_of(model, "DequantizeLinear")
    assert len(quantising) == 2 + 4
    for node in quantising:
        assert constants[node.input[1]].dtype == kind, node.name
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any(), node.name
    for layer in nodes_of(model, "Gemm"):
        assert constants[layer.input[2]].dtype == kind, "the bias stays a float"


def test_scales_and_weights_are_those_of_calibration(files: Files) -> None:
    write_tensorrt_int8(files.fp32, files.ort, files.made)
    constants = constants_of(onnx.load(files.made))
    for tensor in ("pixels", "hidden"):
        span = files.ranges[tensor]
        widest = max(-span.low, span.high)
        assert float(constants[f"{tensor}_scale"]) == pytest.approx(widest / 127, rel=0.01)
    unsigned = read_calibration(onnx.load(files.ort)).layers["first"]
    assert (constants["model.block.0.weight_int8"] == unsigned.weight).all()
    assert constants["model.block.0.weight_scale"].shape == (4,)


def test_ranges_of_results_go_along_though_results_are_not_quantised(files: Files) -> None:
    """What replaces the attention between two layers needs them."""
    write_tensorrt_int8(files.fp32, files.ort, files.made)
    quantised = {node.input[0] for node in nodes_of(onnx.load(files.ort), "QuantizeLinear")}
    assert quantised == {"pixels", "hidden"}
    wanted = {name: files.ranges[name].amplitude for name in ("pixels", "hidden", "out")}
    assert read_amplitudes(onnx.load(files.made)) == pytest.approx(wanted)


@pytest.mark.parametrize("base", ["fp32", "fp16"])
@pytest.mark.parametrize("gain", [2.0, 1e-3])
def test_it_says_what_fp32_says(
    tmp_path: Path, pictures: NDArray[np.uint8], base: str, gain: float
) -> None:
    """With a gain of 1e-3 the first layer's weights need scales that FP16 cannot hold."""
    files = Files(tmp_path, pictures, gain)
    write_tensorrt_int8(getattr(files, base), files.ort, files.made)
    with OnnxRuntimeRunner(files.fp32) as before, OnnxRuntimeRunner(files.made) as after:
        for picture in pictures:
            expected, got = before.run(picture[None])[0], after.run(picture[None])[0]
            assert got.anomaly_map == pytest.approx(expected.anomaly_map, abs=0.02 * gain + 1e-3)


@settings(max_examples=50)
@given(
    steps=st.lists(st.integers(-127, 127), min_size=8, max_size=8),
    exponents=st.lists(st.floats(-30, -1), min_size=4, max_size=4),
)
def test_a_weight_is_at_most_half_a_step_off_in_fp16(
    steps: list[int], exponents: list[float]
) -> None:
    weight = np.array(steps, np.int8).reshape(2, 4)
    scale = np.exp2(np.array(exponents, np.float32))
    layer = QuantisedLayer(1.0, weight, scale, axis=1)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "one",
        [value("x", TensorProto.FLOAT16, [1, 2])],
        [value("y", TensorProto.FLOAT16, [1, 4])],
        [numpy_helper.from_array((weight * scale).astype(np.float16), "w")],
    )
    base = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    constants = constants_of(tensorrt_int8(base, Calibration({"layer": layer}, {})))
    step = constants["w_scale"].astype(np.float64)
    assert (step >= LEAST_HALF).all()
    off = np.abs(constants["w_int8"] * step - weight * scale.astype(np.float64))
    assert (off <= step * (0.5 + 127 * 2.0**-11)).all()


def residual() -> ModelProto:
    """Conv `a`, then conv `b` of it plus it: the smallest residual block."""
    value, node = helper.make_tensor_value_info, helper.make_node
    weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    graph = helper.make_graph(
        [
            node("Conv", ["x", "wa"], ["u"], "a"),
            node("Conv", ["u", "wb"], ["v"], "b"),
            node("Add", ["v", "u"], ["y"], "sum"),
        ],
        "residual",
        [value("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [value("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(weight, name) for name in ("wa", "wb")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_a_residual_sum_reads_its_skip_branch_quantised_and_the_layer_as_it_is() -> None:
    weight = (127 * np.eye(3)).astype(np.int8).reshape(3, 3, 1, 1)
    layer = QuantisedLayer(2.0, weight, np.full(3, 1 / 127, np.float32), axis=0)
    calibration = Calibration({"a": layer, "b": layer}, {"sum": (2.0, 2.0)})
    model = tensorrt_int8(residual(), calibration)
    total = next(node for node in model.graph.node if node.name == "sum")
    second = next(node for node in model.graph.node if node.name == "b")
    assert list(total.input) == ["v", "u_dequantised"]
    assert second.input[0] == "u_dequantised", "both read the same quantised tensor"
    assert len(nodes_of(model, "QuantizeLinear")) == 2


def test_graphs_that_do_not_belong_together_are_refused(files: Files) -> None:
    calibration = read_calibration(onnx.load(files.ort))
    with pytest.raises(DataError, match="has no layer first"):
        tensorrt_int8(residual(), calibration)
    other = onnx.load(files.fp32)
    weight = next(t for t in other.graph.initializer if t.name == "model.block.1.weight")
    weight.CopyFrom(numpy_helper.from_array(np.zeros((4, 5), np.float32), weight.name))
    with pytest.raises(DataError, match="the weight of second differs"):
        tensorrt_int8(other, calibration)


def test_a_graph_without_quantised_layers_is_refused(files: Files) -> None:
    with pytest.raises(DataError, match="no quantised layer"):
        read_calibration(onnx.load(files.fp32))
