"""AnoViT: the published decoder, ranges, both encoders, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from metal_edge.errors import SettingsError
from metal_edge.export.onnx_model import check_parity, onnx_from_model, probe_images, save_model
from metal_edge.models.anovit import AnoViT, AnoViTConfig, Decoder
from metal_edge.models.checkpoint import load_checkpoint, save_checkpoint
from metal_edge.models.vit import TimmTokens
from metal_edge.quantize.layers import linear_layers

VIT = "timm:test_vit"  # timm's own tiny network for tests: 6 blocks of width 64, patch 16


def small(**changes: object) -> AnoViTConfig:
    values: dict[str, object] = {"image_size": 64, "width": 32, "depth": 2, "heads": 2}
    values["decoder"] = (32, 16, 16, 8, 8)
    return AnoViTConfig.model_validate(values | changes)


def small_vit(**changes: object) -> AnoViTConfig:
    return AnoViTConfig.for_vit(VIT, **{"image_size": 64, "decoder": (32, 16, 16, 8, 8)} | changes)


def test_the_published_decoder() -> None:
    """2,162,083 parameters; sides 26, 28, 30, 59, 117, 233 from 24 tokens."""
    decoder = Decoder((768, 256, 128, 64, 32, 16, 3)).to("meta")
    assert sum(p.numel() for p in decoder.parameters()) == 2_162_083
    sides = []
    x = torch.empty(1, 768, 24, 24, device="meta")
    for layer in decoder.layers:
        x = layer(x)
        if isinstance(layer, nn.ConvTranspose2d):
            sides.append(x.shape[-1])
    assert sides == [26, 28, 30, 59, 117, 233]


def test_the_published_network() -> None:
    """ViT-B/16 at 384 px (86,090,496 parameters without its classifier) and the decoder."""
    config = AnoViTConfig.for_vit("timm:vit_base_patch16_384")
    assert (config.image_size, config.grid, config.width) == (384, 24, 768)
    with torch.device("meta"):
        model = AnoViT(config)
        image = torch.empty(1, 3, 384, 384)
    assert sum(p.numel() for p in model.parameters()) == 86_090_496 + 2_162_083
    assert all(p.requires_grad for p in model.parameters())
    assert isinstance(model.encoder, TimmTokens)
    assert model.encoder(image)[0].shape == (1, 768, 24, 24)
    assert model(image).shape == (1, 3, 384, 384)


def test_target_and_reconstruction_have_the_same_range() -> None:
    torch.manual_seed(0)
    model = AnoViT(small()).eval()
    images = torch.from_numpy(probe_images(64))
    target = model.target(model.precompute(images))
    assert (target.amin().item(), target.amax().item()) == (-1.0, 1.0)
    torch.testing.assert_close(target[2, :, 5, 7] * 127.5 + 127.5, images[2, 5, 7].float())
    with torch.no_grad():
        model.decoder.layers[-2].bias.copy_(torch.tensor([9.0, -9.0, 0.0]))
        reconstruction = model(target)
    assert reconstruction.shape == target.shape
    assert reconstruction[:, 0].min() > 0.9
    assert reconstruction[:, 1].max() < -0.9
    assert reconstruction.abs().max() <= 1


def test_the_map_is_the_squared_error_summed_over_rgb() -> None:
    model = AnoViT(small()).eval()
    target = torch.zeros(1, 3, 64, 64)
    reconstruction = target.clone()
    reconstruction[0, :, 3, 4] = torch.tensor([1.0, 0.5, -0.5])
    error = model.error_map(reconstruction, target)
    assert error[0, 3, 4].item() == pytest.approx(1.5)
    assert error.sum().item() == pytest.approx(1.5)


@pytest.mark.parametrize("config", [small(), small_vit()], ids=["scratch", "timm"])
def test_it_learns_a_picture_with_encoder_and_decoder(config: AnoViTConfig) -> None:
    torch.manual_seed(0)
    model = AnoViT(config).train()
    y, x = np.mgrid[0:64, 0:64]
    picture = np.stack([x * 4, y * 4, (x + y) * 2], axis=-1).astype(np.uint8)
    target = model.target(torch.from_numpy(np.stack([picture, picture[::-1].copy()])))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model.loss(model(target), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any(name.startswith("encoder") for name in moved)
    assert any(name.startswith("decoder") for name in moved)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 72},
        {"width": 33},
        {"decoder": (32, 16)},
        {"backbone": "efficientnet-lite0"},
        {"backbone_weights": "own.safetensors"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        small(**change)


def test_a_size_that_the_vit_cannot_have() -> None:
    with pytest.raises(SettingsError, match=r"100 is not a multiple .* 16 px.*--image-size 96"):
        small_vit(image_size=100)


@pytest.mark.parametrize("config", [small(), small_vit()], ids=["scratch", "timm"])
def test_checkpoint_and_exported_graph_agree_with_the_network(
    config: AnoViTConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AnoViT(config).eval()
    save_checkpoint(tmp_path / "c", model, {})
    loaded, _ = load_checkpoint(tmp_path / "c")
    exported = onnx_from_model(loaded)
    save_model(exported, tmp_path / "m.onnx")
    assert check_parity(model, tmp_path / "m.onnx", probe_images(64)) < 1e-4
    # The encoder's linear layers are found for INT8: four a block, and the patch embedding,
    # which in timm is a convolution.
    assert len(linear_layers(exported)) == (4 * 2 + 1 if config.backbone == "scratch" else 4 * 6)
