"""MeTAL over features: the mask holds at every depth, in PyTorch and in the exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from metal_edge.export.onnx_model import check_parity, onnx_from_model, probe_images, save_model
from metal_edge.models.backbone import EfficientNetLite0, load_imagenet_weights
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig, allowed_tokens
from metal_edge.quantize.int8 import convolution_nodes


def small(**changes: object) -> MetalFeaturesConfig:
    values: dict[str, object] = {"image_size": 64, "grid": 4, "width": 16, "heads": 4}
    return MetalFeaturesConfig.model_validate(values | changes)


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_token_and_its_neighbourhood_do_not_reach_their_own_reconstruction(
    radius: int, depth: int
) -> None:
    """Bitwise equal under replacement by noise, and a Jacobian block of exact zeros."""
    torch.manual_seed(0)
    model = MetalFeatures(small(image_size=96, grid=6, radius=radius, depth=depth)).eval()
    target = torch.randn(1, 36, 176)
    hidden = torch.from_numpy(~allowed_tokens(6, radius)[14])
    changed = target.clone()
    changed[0, hidden] = 50 * torch.randn(int(hidden.sum()), 176)
    with torch.no_grad():
        assert torch.equal(model(target)[0, 14], model(changed)[0, 14])
        assert not torch.equal(model(target)[0, 35], model(changed)[0, 35])
    jacobian = torch.autograd.functional.jacobian(lambda t: model(t)[0, 14, :4], target)
    assert (jacobian[:, 0, hidden] == 0).all()
    assert (jacobian[:, 0, ~hidden] != 0).any()


def test_allowed_tokens_are_those_farther_than_the_radius() -> None:
    allowed = allowed_tokens(4, 1)
    assert not allowed.diagonal().any()
    assert (allowed == allowed.T).all()
    assert (~allowed[0]).nonzero()[0].tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize(
    "change", [{"radius": 3}, {"width": 18}, {"levels": ("stride5",)}, {"image_size": 72}]
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
    flat = model.target(stored).reshape(-1, 176)
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
    assert kinds.count("Conv") == 33
    assert kinds.count("Clip") == 22
    assert kinds.count("Add") == 6
