"""Export: the graph says what PyTorch says, for any batch, and carries no trace of its maker."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from metal_edge.errors import DataError
from metal_edge.export.onnx_model import (
    check_parity,
    onnx_from_model,
    probe_images,
    save_model,
)
from metal_edge.models.metal import Metal
from metal_edge.models.scoring import AnomalyScorer
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


def test_parity_holds_on_black_white_noise_and_checks(network: Metal, fp32: Path) -> None:
    assert check_parity(network, fp32, probe_images(32)) < 1e-4


def test_parity_notices_other_weights(network: Metal, fp32: Path) -> None:
    other = Metal(network.config).eval()
    with pytest.raises(DataError, match="differs from the checkpoint"):
        check_parity(other, fp32, probe_images(32))


@pytest.mark.parametrize("output", ["anomaly_map", "score"])
def test_parity_notices_a_nan_in_one_output_of_one_picture(
    network: Metal, fp32: Path, tmp_path: Path, output: str
) -> None:
    """Where the picture is white throughout; on the others the graph is right."""
    model = onnx.load(fp32)
    last = next(node for node in model.graph.node if output in node.output)
    last.output[0] = "right"
    for node in model.graph.node:
        node.input[:] = ["right" if name == output else name for name in node.input]
    nodes = [
        helper.make_node("ReduceMin", ["image"], ["darkest"], "darkest", keepdims=0),
        helper.make_node("Equal", ["darkest", "white"], ["strange"], "strange"),
        helper.make_node("Where", ["strange", "nan", "right"], [output], "spoil"),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(255, np.uint8), "white"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    save_model(model, tmp_path / "spoilt.onnx")
    with pytest.raises(DataError, match="differs from the checkpoint by nan"):
        check_parity(network, tmp_path / "spoilt.onnx", probe_images(32))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_gives_what_its_images_give(
    network: Metal, fp32: Path, frames: NDArray[np.uint8], batch: int
) -> None:
    with OnnxRuntimeRunner(fp32) as runner, torch.no_grad():
        got = runner.run(frames[:batch])
        maps, scores = AnomalyScorer(network).eval()(torch.from_numpy(frames[:batch]))
    for inspection, expected_map, expected in zip(got, maps, scores, strict=True):
        np.testing.assert_allclose(inspection.anomaly_map, expected_map.numpy(), rtol=1e-4)
        assert inspection.score == pytest.approx(expected.item(), rel=1e-4)


def test_the_same_weights_give_the_same_bytes(network: Metal, fp32: Path) -> None:
    assert onnx_from_model(network).SerializeToString() == onnx.load(fp32).SerializeToString()


def test_no_source_path_is_in_the_file(fp32: Path) -> None:
    content = fp32.read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_a_fixed_batch_is_in_the_graph_and_agrees(network: Metal, tmp_path: Path) -> None:
    graph = onnx_from_model(network, batch=3)
    tensors = [*graph.graph.input, *graph.graph.output]
    assert [t.type.tensor_type.shape.dim[0].dim_value for t in tensors] == [3, 3, 3]
    (tmp_path / "m.onnx").write_bytes(graph.SerializeToString())
    assert check_parity(network, tmp_path / "m.onnx", probe_images(32), batch=3) < 1e-4


def test_nothing_is_left_to_simplify(fp32: Path) -> None:
    """Constants are folded and shapes computed, as onnxsim would do it again."""
    model = onnx.load(fp32)
    again, ok = onnxsim.simplify(model)
    assert ok
    assert Counter(n.op_type for n in model.graph.node) == Counter(
        n.op_type for n in again.graph.node
    )
