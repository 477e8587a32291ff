"""MeTAL over features: the mask holds at every depth, in PyTorch and in the exported graph."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from metal_edge.export.onnx_model import check_parity, onnx_from_model, probe_images, save_model
from metal_edge.models.backbone import (
    ConvNorm,
    EfficientNetLite0,
    InvertedResidual,
    load_imagenet_weights,
)
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig, allowed_tokens
from metal_edge.models.whitening import Moments, Whitening
from metal_edge.quantize.layers import convolution_nodes
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


def small(**changes: object) -> MetalFeaturesConfig:
    values: dict[str, object] = {"image_size": 64, "grid": 4, "width": 16, "heads": 4}
    return MetalFeaturesConfig.model_validate(values | {"memory": 20} | changes)


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_token_and_its_neighbourhood_do_not_reach_their_own_reconstruction(
    radius: int, depth: int
) -> None:
    """Bitwise equal under replacement by noise, and a Jacobian block of exact zeros."""
    torch.manual_seed(0)
    model = MetalFeatures(small(image_size=96, grid=6, radius=radius, depth=depth)).eval()
    target = torch.randn(1, 36, 576)
    hidden = torch.from_numpy(~allowed_tokens(6, radius)[14])
    changed = target.clone()
    changed[0, hidden] = 50 * torch.randn(int(hidden.sum()), 576)
    with torch.no_grad():
        assert torch.equal(model.context(target)[0, 14], model.context(changed)[0, 14])
        assert not torch.equal(model.context(target)[0, 35], model.context(changed)[0, 35])
    jacobian = torch.autograd.functional.jacobian(lambda t: model.context(t)[0, 14, :4], target)
    assert (jacobian[:, 0, hidden] == 0).all()
    assert (jacobian[:, 0, ~hidden] != 0).any()


def test_allowed_tokens_are_those_farther_than_the_radius() -> None:
    allowed = allowed_tokens(4, 1)
    assert not allowed.diagonal().any()
    assert (allowed == allowed.T).all()
    assert (~allowed[0]).nonzero()[0].tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize(
    "change",
    [
        {"radius": 3},
        {"width": 18},
        {"levels": ("stride5",)},
        {"levels": ("stride8+stride4",)},
        {"levels": ()},
        {"context_depths": 4},
        {"context": False, "students": False},
        {"context": False, "levels": ("stride8",)},
        {"memory_window": 2},
        {"memory_window": 5},
        {"image_size": 72},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        small(**change)


def test_the_backbone_has_its_imagenet_weights_and_stays_frozen() -> None:
    network = EfficientNetLite0(("stride4", "stride8", "stride16"))
    before = network.stem.conv.weight.clone()
    load_imagenet_weights(network)
    assert not torch.equal(before, network.stem.conv.weight)
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.train().training
    maps = network(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4)]
    assert all(torch.isfinite(m).all() and m.std() > 0.1 for m in maps)


def test_standardised_features_have_mean_zero_and_unit_deviation() -> None:
    model = MetalFeatures(small()).eval()
    stored = model.precompute(torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8))
    model.fit_inputs(stored)
    flat = model.target(stored).reshape(-1, 576)
    assert flat.mean(dim=0).abs().max() < 1e-3
    assert flat.std(dim=0).max() < 1.01


def test_the_exported_graph_agrees_and_its_convolutions_are_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MetalFeatures(small()).eval()
    exported = onnx_from_model(model)
    save_model(exported, tmp_path / "m.onnx")
    images = np.concatenate([probe_images(64), probe_images(64, seed=1)[2:3]])
    assert check_parity(model, tmp_path / "m.onnx", images) < 1e-4
    found = set(convolution_nodes(exported))
    kinds = [n.op_type for n in exported.graph.node if n.name in found]
    modules = list(model.backbone.modules())
    assert kinds.count("Conv") == sum(isinstance(m, torch.nn.Conv2d) for m in modules)
    assert kinds.count("Clip") == sum(isinstance(m, ConvNorm) and m.activate for m in modules)
    assert kinds.count("Add") == sum(
        isinstance(m, InvertedResidual) and m.residual for m in modules
    )


def fitted(config: MetalFeaturesConfig) -> tuple[MetalFeatures, torch.Tensor]:
    """A model with random predictions whose error constants fit some random images."""
    torch.manual_seed(0)
    model = MetalFeatures(config).eval()
    model.load_pretrained()
    stored = model.precompute(torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8))
    model.fit_inputs(stored)
    model.fit_errors(stored)
    return model, model.target(stored)


def test_whitened_residuals_have_mean_zero_and_nearly_unit_covariance() -> None:
    """More images than channels would be needed for exactly one: the shrinkage keeps it below."""
    torch.manual_seed(0)
    whitening, moments = Whitening(8), Moments(8)
    turned = torch.linalg.qr(torch.randn(8, 8)).Q
    residual = torch.randn(5000, 8) * torch.linspace(1, 2, 8) @ turned + 3
    moments.add(residual)
    whitening.fit(moments)
    white = whitening(residual)
    assert white.mean(dim=0).abs().max() < 1e-3
    covariance = white.T @ white / len(white)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 0.2
    assert covariance.diagonal().max() < 1.001
    assert covariance.diagonal().max() > 0.8


def test_errors_of_good_parts_are_about_one_and_each_opinion_raises_the_map() -> None:
    model, target = fitted(small())
    good = model.error_map(model(target), target)
    assert 0.3 < good.mean() < 1.5
    strange = target.clone()
    strange[:, 5] += 4 * torch.randn_like(strange[:, 5])
    assert (model.error_map(model(strange), strange)[:, 1, 1] > 1.5 * good[:, 1, 1]).all()


def test_one_opinion_without_a_number_leaves_the_map_without_one(tmp_path: Path) -> None:
    """No other opinion, and no floor, may turn it into a score: in PyTorch and in the graph."""
    model, target = fitted(small())
    for index in range(len(model.usual_error)):
        broken = copy.deepcopy(model)
        broken.usual_error[index] = torch.nan
        assert broken.error_map(broken(target), target).isnan().all()
    save_model(onnx_from_model(broken), tmp_path / "m.onnx")
    with OnnxRuntimeRunner(tmp_path / "m.onnx") as runner:
        seen = runner.run(probe_images(64)[:1])[0]
    assert np.isnan(seen.anomaly_map).all()
    assert not np.isfinite(seen.score)


def test_the_memory_compares_means_of_its_window() -> None:
    """One strange token is strange to all nine windows that hold it."""
    model, target = fitted(small(memory_window=3))
    strange = target.clone()
    strange[:, 5] += 50.0
    before, after = (torch.cat(list(model._remembered(x)), dim=-1) for x in (target, strange))
    changed = after != before
    touched = changed.any(dim=-1).any(dim=0).reshape(4, 4)
    assert touched[:3, :3].all()
    assert not touched[3].any()
    assert not touched[:, 3].any()


@pytest.mark.parametrize(
    "change",
    [
        {"memory": 0},
        {"students": False},
        {"context": False},
        {"context_depths": 1, "depth": 1},
        {"memory_window": 3},
    ],
)
def test_opinions_can_be_left_out(change: dict[str, object]) -> None:
    model, target = fitted(small(**change))
    error = model.error_map(model(target), target)
    assert error.shape == (6, 4, 4)
    assert torch.isfinite(error).all()
    assert error.std() > 0
    assert model.error_weight.sum().item() == pytest.approx(1.0)


@pytest.mark.skipif(find_spec("timm") is None, reason="the extra `vit` is not installed")
@pytest.mark.parametrize("levels", [("2", "5"), ("1", "3", "5")])
def test_it_stands_on_a_vit_as_well(levels: tuple[str, ...], tmp_path: Path) -> None:
    """timm's own tiny network for tests, freshly initialised: 6 blocks of width 64, patch 16."""
    config = MetalFeaturesConfig.for_vit(
        "timm:test_vit", image_size=64, levels=levels, width=16, heads=4, memory=10
    )
    torch.manual_seed(0)
    model = MetalFeatures(config).eval()
    images = probe_images(64)
    stored = model.precompute(torch.from_numpy(images))
    assert stored.shape == (len(images), 16, 64 * len(levels))
    model.fit_inputs(stored)
    model.fit_errors(stored)
    save_model(onnx_from_model(model), tmp_path / "m.onnx")
    assert check_parity(model, tmp_path / "m.onnx", images) < 1e-3
