"""FP16 and INT8: what is converted, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from metal_edge.errors import DataError
from metal_edge.export.parity import compare
from metal_edge.export.precision import EnginePrecision, write_precision
from metal_edge.quantize.fp16 import convert_fp16
from metal_edge.quantize.layers import linear_layers


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
