"""FP16 and INT8: what is converted, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from metal_edge.errors import DataError
from metal_edge.export.parity import compare
from metal_edge.export.precision import EnginePrecision, write_precision
from metal_edge.quantize.fp16 import convert_fp16
from metal_edge.quantize.layers import linear_layers
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


@pytest.fixture(scope="module")
def int8(fp32: Path, frames: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    write_precision(fp32, path, EnginePrecision.INT8, frames)
    return path


def test_exactly_the_networks_linear_layers_are_quantised(fp32: Path) -> None:
    """Two branches of 2 embedding + 4 block layers, and 3 of the decoder; no smoothing."""
    assert len(linear_layers(onnx.load(fp32))) == 2 * (2 + 4) + 3


def test_weights_are_int8_symmetric_per_channel_and_activations_uint8(int8: Path) -> None:
    model = onnx.load(int8)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantise = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    weights = [
        n
        for n in model.graph.node
        if n.op_type == "DequantizeLinear"
        and n.input[0] in constants
        and constants[n.input[0]].dtype == np.int8
    ]
    assert {constants[n.input[2]].dtype for n in quantise} == {np.dtype(np.uint8)}
    assert len(weights) == len(linear_layers_of(int8))
    for node in weights:
        assert constants[node.input[1]].shape == (max(constants[node.input[1]].shape),)
        assert not constants[node.input[2]].any(), node.name


def linear_layers_of(path: Path) -> list[str]:
    nodes = onnx.load(path).graph.node
    quantised = {o for n in nodes if n.op_type == "DequantizeLinear" for o in n.output}
    return [n.name for n in nodes if n.op_type in {"MatMul", "Gemm"} and n.input[1] in quantised]


def test_int8_agrees_with_fp32(fp32: Path, int8: Path, frames: NDArray[np.uint8]) -> None:
    found = compare(fp32, int8, None, frames)
    assert found.correlation > 0.99
    assert np.median(found.score_error) < 0.1


def test_fp16_keeps_normalisation_softmax_and_error_map_in_fp32(
    fp32: Path, frames: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    notes = write_precision(fp32, path, EnginePrecision.FP16, frames)
    model = onnx.load(path)
    kinds = {n.name: n.op_type for n in model.graph.node}
    islands = {island["group"]: island for island in notes["fp32_islands"]}
    assert set(islands) >= {"pixel scaling", "normalisation", "softmax", "error map"}
    assert all(island["reason"] for island in islands.values())
    listed = [name for island in islands.values() for name in island["nodes"]]
    assert len(listed) == len(set(listed)), "a node is in two groups"
    kept = {kinds[name] for name in listed if name in kinds}
    assert {"LayerNormalization", "Softmax", "Sub", "ReduceMax"} <= kept
    halves = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert len(halves) >= 15
    assert compare(fp32, path, None, frames).correlation > 0.9999


def test_nodes_listed_as_fp32_compute_in_fp32_and_other_layers_in_fp16(
    fp32: Path, tmp_path: Path
) -> None:
    """The manifest is no wish: by the types in the graph."""
    islands = convert_fp16(fp32, tmp_path / "fp16.onnx")
    listed = {name for island in islands for name in island.nodes}
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "fp16.onnx"), strict_mode=True)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    layers = 0
    for node in model.graph.node:
        types = {kinds.get(name) for name in (*node.input, *node.output)}
        if node.name in listed:
            assert TensorProto.FLOAT16 not in types, node.name
        elif node.op_type in {"Gemm", "MatMul", "Conv"}:
            assert types == {TensorProto.FLOAT16}, node.name
            layers += 1
    assert layers


def test_every_layer_that_is_not_int8_is_listed_once_with_a_reason(
    fp32: Path, frames: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    notes = write_precision(fp32, path, EnginePrecision.INT8, frames)
    groups = {group["group"]: group for group in notes["fp32_islands"]}
    assert groups.keys() == {
        "pixel scaling", "normalisation", "softmax", "error map", "other products",
    }  # fmt: skip
    assert all(group["reason"] for group in groups.values())
    listed = [name for group in groups.values() for name in group["nodes"]]
    assert len(listed) == len(set(listed))
    layers = [n.name for n in onnx.load(path).graph.node if n.op_type in {"Gemm", "MatMul", "Conv"}]
    assert len(groups["other products"]["nodes"]) == 2 * 2
    assert set(layers) - set(listed) == set(linear_layers_of(path))
    assert not set(listed) & set(linear_layers_of(path))


def test_int8_refuses_few_and_repeated_frames(
    fp32: Path, frames: NDArray[np.uint8], tmp_path: Path
) -> None:
    repeated = np.repeat(frames[:3], 20, axis=0)
    with pytest.raises(DataError, match="3 distinct frames"):
        write_precision(fp32, tmp_path / "x.onnx", EnginePrecision.INT8, repeated)
    assert not list(tmp_path.iterdir())


def test_an_fp16_graph_is_in_order(fp32: Path, tmp_path: Path) -> None:
    """ONNX wants nodes after what they read; not every tool forgives another order."""
    convert_fp16(fp32, tmp_path / "fp16.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "fp16.onnx"), full_check=True)


def test_what_fp32_nodes_hand_to_each_other_never_becomes_fp16(fp32: Path, tmp_path: Path) -> None:
    convert_fp16(fp32, tmp_path / "fp16.onnx")
    model = onnx.load(tmp_path / "fp16.onnx")
    to = {n.output[0]: n.attribute[0].i for n in model.graph.node if n.op_type == "Cast"}
    back = [n for n in model.graph.node if n.op_type == "Cast" and to.get(n.input[0])]
    assert TensorProto.FLOAT16 in to.values()
    assert not [n.name for n in back if to[n.output[0]] == TensorProto.FLOAT]


def test_the_fp16_graphs_outputs_are_not_rounded_to_fp16(
    fp32: Path, frames: NDArray[np.uint8], tmp_path: Path
) -> None:
    convert_fp16(fp32, tmp_path / "fp16.onnx")
    with OnnxRuntimeRunner(tmp_path / "fp16.onnx") as runner:
        results = runner.run(frames[:4])
    scores = np.array([result.score for result in results], np.float32)
    assert (scores != scores.astype(np.float16)).any()
    anomaly_map = results[0].anomaly_map
    assert (anomaly_map != anomaly_map.astype(np.float16)).any()


def test_a_vector_of_zeros_has_a_direction_of_zeros_in_fp16(tmp_path: Path) -> None:
    """x / max(|x|, 1e-12): FP16 has no 1e-12."""
    nodes = [
        helper.make_node("ReduceL2", ["x", "axes"], ["norm"], "norm", keepdims=1),
        helper.make_node("Clip", ["norm", "least"], ["floor"], "floor"),
        helper.make_node("Div", ["x", "floor"], ["y"], "divide"),
    ]
    constants = [
        numpy_helper.from_array(np.array([-1]), "axes"),
        numpy_helper.from_array(np.array(1e-12, np.float32), "least"),
    ]
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy"]
    graph = helper.make_graph(nodes, "direction", [sides[0]], [sides[1]], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "fp32.onnx",
    )
    convert_fp16(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx")
    session = ort.InferenceSession(str(tmp_path / "fp16.onnx"))
    x = np.array([[0, 0, 0], [3, 0, 4]], np.float32)
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], [[0, 0, 0], [0.6, 0, 0.8]], atol=1e-3
    )
