"""Constants stored in fewer bytes say the same; masks stay exact."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from metal_edge.export.onnx_model import onnx_from_model, probe_images
from metal_edge.models.attention import MASKED_SCORE
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.quantize.compact import SMALLEST, compact


def maps_of(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(["anomaly_map"], {"image": images})[0])


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    """Random predictions; memories of 700 tokens, a mask over 64 tokens and 8 heads."""
    torch.manual_seed(0)
    config = MetalFeaturesConfig(image_size=128, grid=8, width=32, heads=8, memory=700)
    model = MetalFeatures(config).eval()
    model.load_pretrained()
    pictures = torch.randint(0, 256, (12, 4, 4, 3), dtype=torch.uint8)
    pictures = pictures.repeat_interleave(32, 1).repeat_interleave(32, 2)
    stored = model.precompute(pictures)
    model.fit_inputs(stored)
    model.fit_errors(stored)
    return onnx_from_model(model)


def test_maps_hardly_change_and_bytes_go(graph: onnx.ModelProto) -> None:
    smaller = onnx.ModelProto()
    smaller.CopyFrom(graph)
    saved = compact(smaller)
    onnx.checker.check_model(smaller, full_check=True)
    assert graph.ByteSize() - smaller.ByteSize() == pytest.approx(saved, rel=0.02)
    kinds = {onnx.TensorProto.DataType.Name(t.data_type) for t in smaller.graph.initializer}
    assert {"INT8", "FLOAT16"} <= kinds
    large = [t for t in smaller.graph.initializer if numpy_helper.to_array(t).nbytes >= SMALLEST]
    assert all(t.data_type != onnx.TensorProto.FLOAT for t in large)
    images = probe_images(128)
    before, after = maps_of(graph, images), maps_of(smaller, images)
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.999
    assert np.abs(after - before).max() < 0.02 * before.max()


def test_a_mask_is_exactly_what_it_was(graph: onnx.ModelProto) -> None:
    smaller = onnx.ModelProto()
    smaller.CopyFrom(graph)
    compact(smaller)
    masks = [
        [
            values == np.float32(MASKED_SCORE)
            for tensor in model.graph.initializer
            if (values := numpy_helper.to_array(tensor).astype(np.float32)).shape[-2:] == (64, 64)
        ]
        for model in (graph, smaller)
    ]
    assert masks[0]
    assert any(mask.any() for mask in masks[0])
    assert all(np.array_equal(a, b) for a, b in zip(*masks, strict=True))


def test_what_fp16_cannot_hold_stays(graph: onnx.ModelProto) -> None:
    kept = onnx.ModelProto()
    kept.CopyFrom(graph)
    tensor = max(kept.graph.initializer, key=lambda t: len(t.raw_data) * (len(t.dims) == 3))
    values = numpy_helper.to_array(tensor) * np.float32(1e6)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    compact(kept)
    same = next(t for t in kept.graph.initializer if t.name == tensor.name)
    assert np.array_equal(numpy_helper.to_array(same), values)
