"""Depths with grids of their own: what is coarse is judged once, and its errors are enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from metal_edge.export.onnx_model import check_parity, onnx_from_model, probe_images, save_model
from metal_edge.models.checkpoint import load_checkpoint, save_checkpoint
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.models.tokens import coarser
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.int8 import calibrate
from metal_edge.quantize.layers import choosing_products
from metal_edge.quantize.rounding import plain_int8
from metal_edge.quantize.tensorrt_qdq import write_tensorrt_int8
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

SIZE = 64
LEVELS = ("stride4", "stride8", "stride16-early")


def pictures(count: int, seed: int) -> NDArray[np.uint8]:
    """Random coarse pictures, uint8 [count, SIZE, SIZE, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)


def small(**changes: object) -> MetalFeaturesConfig:
    values: dict[str, object] = {"image_size": SIZE, "grid": 8, "levels": LEVELS, "hidden": 8}
    values |= {"context": False, "memory": 60, "own_grids": True}
    return MetalFeaturesConfig.model_validate(values | changes)


def fitted(config: MetalFeaturesConfig) -> MetalFeatures:
    torch.manual_seed(0)
    model = MetalFeatures(config).eval()
    model.load_pretrained()
    with torch.inference_mode():
        stored = model.precompute(torch.from_numpy(pictures(24, 0)))
    model.fit_inputs(stored)
    model.fit_errors(stored)
    return model


def errors_of(model: MetalFeatures, images: NDArray[np.uint8]) -> torch.Tensor:
    with torch.inference_mode():
        target = model.target(model.precompute(torch.from_numpy(images)))
        return model.errors(model(target), target)


@pytest.mark.parametrize("window", [1, 3])
def test_where_no_depth_is_coarser_nothing_changes(window: int) -> None:
    shallow = {"levels": ("stride4", "stride8"), "memory_window": window}
    own, one = (fitted(small(own_grids=flag, **shallow)) for flag in (True, False))
    assert not own.mixed
    assert torch.equal(errors_of(own, pictures(3, 1)), errors_of(one, pictures(3, 1)))


def test_a_coarse_depth_keeps_its_own_tokens() -> None:
    """As the backbone gives them, and standardised each channel by itself."""
    model = fitted(small())
    assert model.grids == (8, 8, 4)
    image = torch.from_numpy(pictures(2, 1))
    stored = model.precompute(image)
    levels = model.backbone(image.float().permute(0, 3, 1, 2) * (2.0 / 255.0) - 1.0)
    assert torch.equal(model.tokens_of(stored, 2), levels[2].flatten(2).mT)
    assert torch.equal(model.tokens_of(stored, 1), levels[1].flatten(2).mT)
    train = model.target(model.precompute(torch.from_numpy(pictures(24, 0))))
    for depth in range(3):
        flat = model.tokens_of(train, depth).flatten(0, 1)
        assert flat.mean(dim=0).abs().max() < 1e-3
        assert (flat.std(dim=0) - 1).abs().max() < 0.02


def test_means_of_squares_are_those_of_pooling() -> None:
    maps = torch.randn(2, 5, 12, 12)
    expected = torch.nn.functional.avg_pool2d(maps, 3).flatten(2).mT
    assert torch.allclose(coarser(maps.flatten(2).mT, 12, 4), expected, atol=1e-6)


def test_a_strange_coarse_token_raises_the_map_at_its_place_and_nowhere_far() -> None:
    """Laid out and enlarged row by row: its place must not be mirrored or turned."""
    model = fitted(small())
    with torch.inference_mode():
        target = model.target(model.precompute(torch.from_numpy(pictures(2, 1))))
        strange = target.clone()
        model.tokens_of(strange, 2)[:, 1 * 4 + 3] += 40.0  # a view: row 1, column 3 of 4 x 4
        before = model.error_map(model(target), target)
        after = model.error_map(model(strange), strange)
    raised = after / before
    assert (raised[:, 2:4, 6:8] > 1.2).all()
    assert (raised[:, 5:, :] == 1).all()
    assert (raised[:, :, :4] == 1).all()


@pytest.mark.parametrize(
    ("one_way", "links"), [(False, [(0, 1), (1, 2), (1, 0), (2, 1)]), (True, [(0, 1), (1, 2)])]
)
def test_students_work_on_the_coarser_grid_of_their_depths(
    one_way: bool, links: list[tuple[int, int]]
) -> None:
    model = fitted(small(one_way=one_way))
    assert model.links == links
    target = model.target(model.precompute(torch.from_numpy(pictures(2, 1))))
    _, found = model._split(model(target), target)
    shapes = [(got.shape[1:], wanted.shape[1:]) for got, wanted in found]
    width = {0: 24, 1: 40, 2: 80}
    sides = [(16 if 2 in link else 64, width[link[1]]) for link in links]
    assert shapes == [(side, side) for side in sides]
    loss = model.loss(model(target), target)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.students.parameters())


def test_a_network_with_context_has_one_grid() -> None:
    with pytest.raises(ValidationError, match="own_grids"):
        small(context=True, width=16, heads=4)


def test_the_window_fits_the_coarsest_grid() -> None:
    with pytest.raises(ValidationError, match="memory_window"):
        small(memory_window=5)


@pytest.mark.parametrize("change", [{}, {"one_way": True}, {"memory_window": 3}])
def test_the_graph_agrees_and_int8_passes_the_gate(
    change: dict[str, object], tmp_path: Path
) -> None:
    """Searches are INT8 there, also in TensorRT's graph, and no NaN is lost on the way."""
    model = fitted(small(**change))
    fp32, int8, plain = (tmp_path / f"{name}.onnx" for name in ("fp32", "int8", "plain"))
    save_model(onnx_from_model(model), fp32)
    assert check_parity(model, fp32, np.concatenate([probe_images(SIZE), pictures(2, 7)])) < 1e-3
    calibrated = calibrate(fp32, pictures(12, 0), CalibrationMethod.MINMAX)
    layers = calibrated.write(int8, calibrated.groups)
    searches = choosing_products(onnx.load(fp32))
    assert len(searches) == len(LEVELS)
    assert set(searches) <= set(layers)
    save_model(plain_int8(calibrated.model, layers, calibrated.ranges), plain)
    for images in (pictures(6, 7), probe_images(SIZE)):
        with (
            OnnxRuntimeRunner(fp32) as source,
            OnnxRuntimeRunner(int8) as made,
            OnnxRuntimeRunner(plain) as rounded,
        ):
            maps = [
                np.stack([i.anomaly_map for i in r.run(images)]) for r in (source, made, rounded)
            ]
        apart = [np.sqrt(((m - maps[0]) ** 2).mean(axis=(1, 2))).max() for m in maps[1:]]
        assert apart[0] <= 2 * apart[1]
    assert write_tensorrt_int8(fp32, int8, tmp_path / "trt.onnx") >= len(LEVELS)
    with OnnxRuntimeRunner(tmp_path / "trt.onnx") as runner:
        got = runner.run(pictures(1, 7))[0].anomaly_map
    assert np.corrcoef(got.ravel(), made_map(fp32).ravel())[0, 1] > 0.95


def made_map(path: Path) -> NDArray[np.float32]:
    with OnnxRuntimeRunner(path) as runner:
        return runner.run(pictures(1, 7))[0].anomaly_map


def test_a_coarse_opinion_without_a_number_leaves_the_map_without_one(tmp_path: Path) -> None:
    model = fitted(small())
    model.memories[2].centre[3] = torch.nan
    save_model(onnx_from_model(model), tmp_path / "m.onnx")
    with OnnxRuntimeRunner(tmp_path / "m.onnx") as runner:
        seen = runner.run(pictures(1, 7))[0]
    assert np.isnan(seen.anomaly_map).all()
    assert not np.isfinite(seen.score)


def test_a_checkpoint_from_before_loads_as_it_was(tmp_path: Path) -> None:
    """Its configuration does not name what is new."""
    model = fitted(small(own_grids=False))
    save_checkpoint(tmp_path / "m.safetensors", model, {})
    data = (tmp_path / "m.safetensors").read_bytes()
    old = data
    for name in (b'\\"own_grids\\": false, ', b'\\"one_way\\": false, '):
        assert name in old
        old = old.replace(name, b" " * len(name))
    (tmp_path / "old.safetensors").write_bytes(old)
    loaded, _ = load_checkpoint(tmp_path / "old.safetensors")
    assert isinstance(loaded, MetalFeatures)
    assert torch.equal(errors_of(loaded, pictures(2, 1)), errors_of(model, pictures(2, 1)))
