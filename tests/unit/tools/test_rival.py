"""The rival: its export behind our interface, its back ends, its weights, the frames it gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from metal_edge.errors import MetalEdgeError
from metal_edge.export.onnx_model import onnx_from_model, save_model
from metal_edge.imaging import prepare
from metal_edge.models.backbone import EfficientNetLite0, load_imagenet_weights
from metal_edge.models.vit import import_timm
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner
from tools.bench import rival
from tools.bench.adapt import Resized, from_anomalib
from tools.bench.anomalib_export import BACKBONE, LAYERS, offline_weights
from tools.bench.openvino_runner import OpenVinoRunner, openvino_version
from tools.results.patchcore import PatchCore

needs_openvino = pytest.mark.skipif(
    openvino_version() is None, reason="openvino is not installed (make bench installs it)"
)


def anomalibs(side: int = 8) -> onnx.ModelProto:
    """A graph with the interface of anomalib's export: channel 1 as map, its maximum as score."""
    values = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Slice", ["input", "first", "end", "axis"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "axes"], ["pred_score"], keepdims=0),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [len(value)], value)
        for name, value in {"first": [1], "end": [2], "axis": [1], "axes": [1, 2, 3]}.items()
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [values("input", TensorProto.FLOAT, [1, 3, side, side])],
        [
            values("pred_score", TensorProto.FLOAT, [1]),
            values("anomaly_map", TensorProto.FLOAT, [1, 1, side, side]),
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def frames() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)


def test_their_export_takes_our_frame_and_keeps_its_numbers(
    tmp_path: Path, frames: NDArray[np.uint8]
) -> None:
    ours = from_anomalib(anomalibs())
    onnx.checker.check_model(ours, full_check=True)
    save_model(ours, tmp_path / "model.onnx")
    with OnnxRuntimeRunner(tmp_path / "model.onnx") as runner:
        (found,) = runner.run(frames)
    green = frames[0, ..., 1].astype(np.float32) / np.float32(255)
    assert np.array_equal(found.anomaly_map, green)
    assert found.score == green.max()


def test_another_export_is_refused() -> None:
    theirs = anomalibs()
    theirs.graph.output[0].name = "pred_label"
    with pytest.raises(ValueError, match="outputs differ"):
        from_anomalib(theirs)


@needs_openvino
def test_openvino_gives_what_onnx_runtime_gives(
    tmp_path: Path, small_patchcore: PatchCore, pictures: Tensor
) -> None:
    with torch.no_grad():
        tokens = small_patchcore.precompute(pictures).flatten(0, 1)
        small_patchcore.fit(tokens, torch.Generator().manual_seed(0), lambda _done, _total: None)
    path = tmp_path / "patchcore.onnx"
    save_model(onnx_from_model(small_patchcore), path)
    images = pictures.numpy().copy()
    images[:, 20:30, 20:40] = 255
    with OnnxRuntimeRunner(path) as wanted, OpenVinoRunner(path) as runner:
        assert runner.input_shape == wanted.input_shape
        pairs = zip(wanted.run(images), runner.run(images), strict=True)
        for expected, found in pairs:
            # Not bit by bit: a distance is the root of a small difference of large numbers.
            assert found.score == pytest.approx(expected.score, rel=1e-3)
            np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=5e-3)


@needs_openvino
def test_a_map_outlives_the_next_frame(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    save_model(from_anomalib(anomalibs()), tmp_path / "model.onnx")
    with OpenVinoRunner(tmp_path / "model.onnx") as runner:
        (first,) = runner.run(frames)
        kept = first.anomaly_map.copy()
        runner.run(255 - frames)
        assert np.array_equal(first.anomaly_map, kept)


def test_whoever_needs_another_size_resizes_as_the_daemon_does(tmp_path: Path) -> None:
    save_model(from_anomalib(anomalibs()), tmp_path / "model.onnx")
    large = np.random.default_rng(6).integers(0, 256, (1, 20, 20, 3), dtype=np.uint8)
    with Resized(OnnxRuntimeRunner(tmp_path / "model.onnx"), 20) as runner:
        assert runner.input_shape == (20, 20, 3)
        (found,) = runner.run(large)
        with pytest.raises(ValueError, match="images must be"):
            runner.run(prepare(large[0], 8, 8)[None])
    expected = prepare(large[0], 8, 8)[..., 1].astype(np.float32) / np.float32(255)
    assert np.array_equal(found.anomaly_map, expected)


def test_timms_network_gets_our_weights_in_our_order() -> None:
    """Its features are those of our backbone: nothing was paired wrongly."""
    timm = import_timm()
    ours = EfficientNetLite0(("stride8", "stride16"))
    load_imagenet_weights(ours)
    bare = timm.create_model(BACKBONE, pretrained=False, features_only=True)
    places = [info["module"] for info in bare.feature_info.info]
    wanted = [places.index(layer) for layer in LAYERS]
    theirs = timm.create_model(
        BACKBONE, pretrained=False, features_only=True, exportable=True, out_indices=wanted
    ).eval()
    offline_weights(theirs)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        for own, their in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(their, own, rtol=1e-4, atol=1e-4)


def test_an_environment_without_anomalib_is_said(tmp_path: Path) -> None:
    with pytest.raises(MetalEdgeError, match="no anomalib in"):
        rival._anomalib_version(tmp_path)
    (tmp_path / "lib/python3.11/site-packages/anomalib-2.7.0.dist-info").mkdir(parents=True)
    assert rival._anomalib_version(tmp_path) == "2.7.0"
