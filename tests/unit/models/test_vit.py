"""Named ViTs through timm: their tokens, their weights, and what is said where they are not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metal_edge.errors import DataError, MissingInputError, SettingsError, UnavailableError
from metal_edge.models.vit import PlainViT, TimmTokens, import_timm, shape_of, timm_name

NAME = "test_vit"  # 6 blocks of width 64, patch 16, 160 px


def test_names() -> None:
    assert timm_name("timm:vit_small_patch16_224") == "vit_small_patch16_224"
    assert timm_name("efficientnet-lite0") is None


def test_shape_of_a_named_vit() -> None:
    shape = shape_of("vit_base_patch14_reg4_dinov2")
    assert (shape.image_size, shape.patch, shape.depth, shape.width) == (518, 14, 12, 768)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_base_patch16_385", "did you mean vit_base_patch16_384"),
        ("resnet18", "is not a vision transformer"),
        ("vit_base_patch16_384.nobody_in99k", "no weights 'nobody_in99k'"),
    ],
)
def test_a_name_that_cannot_serve(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        shape_of(name)


def test_tokens_are_those_of_the_named_blocks() -> None:
    """Against the network run block by block by hand."""
    torch.manual_seed(0)
    tokens = TimmTokens(NAME, 64, (1, 4)).eval()
    final = TimmTokens(NAME, 64, (5,), final_norm=True).eval()
    final.load_state_dict(tokens.state_dict())
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    network = tokens.network
    wanted = []
    with torch.no_grad():
        x = network._pos_embed(network.patch_embed(image))  # its mean and deviation are 0.5
        for block in network.blocks:
            x = block(x)
            wanted.append(x)
        wanted.append(network.norm(x))
        got = [*tokens(image), *final(image)]
    for ours, theirs in zip(got, [wanted[1], wanted[4], wanted[6]], strict=True):
        assert ours.shape == (2, 64, 4, 4)
        torch.testing.assert_close(ours.flatten(2).transpose(1, 2), theirs[:, 1:])


def test_images_are_normalised_as_the_network_was_trained() -> None:
    """DINOv2 wants ImageNet's mean and deviation; ours come in [-1, 1]."""
    tokens = TimmTokens("vit_small_patch14_dinov2", 28, (0,))
    pixel = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    mean_colour = (2 * pixel - 1) * tokens.scale + tokens.shift
    torch.testing.assert_close(mean_colour, torch.zeros(3, 1, 1), atol=1e-6, rtol=0)
    brighter = (2 * (pixel + 0.229) - 1) * tokens.scale + tokens.shift
    assert brighter[0].item() == pytest.approx(1, abs=1e-5)


def test_weights_from_a_file_with_positions_resampled(tmp_path: Path) -> None:
    """The file is for 160 px, the network for 64; its classifier is not needed."""
    torch.manual_seed(1)
    source = import_timm().create_model(NAME, pretrained=False)
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    tokens = TimmTokens(NAME, 64, (5,))
    tokens.load_weights(tmp_path / "own.safetensors")
    ours, theirs = tokens.network.state_dict(), source.state_dict()
    assert theirs["pos_embed"].shape[1] == 101
    assert ours["pos_embed"].shape[1] == 17
    same = [k for k in ours if k != "pos_embed"]
    assert all(torch.equal(ours[k], theirs[k]) for k in same)


def test_a_file_that_is_not_this_networks(tmp_path: Path) -> None:
    tokens = TimmTokens(NAME, 64, (5,))
    with pytest.raises(MissingInputError, match=r"none\.safetensors not found"):
        tokens.load_weights(tmp_path / "none.safetensors")
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(DataError, match=r"not a \.safetensors file"):
        tokens.load_weights(tmp_path / "w.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"0123456789")
    for name in ("other", "broken"):
        with pytest.raises(DataError, match=rf"{NAME} cannot be read from .*{name}"):
            tokens.load_weights(tmp_path / f"{name}.safetensors")


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that nobody answers for, in a process of its own, as its client reads settings once."""
    code = (
        "from metal_edge.models.vit import TimmTokens\n"
        "from metal_edge.errors import UnavailableError\n"
        f"tokens = TimmTokens({NAME!r}, 64, (5,))\n"
        "try:\n"
        "    tokens.load_weights(None)\n"
        "except UnavailableError as error:\n"
        "    print(error)\n"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "weights of timm's test_vit cannot be had from timm's hub" in done.stdout
    assert "--backbone-weights FILE" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def no_timm(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "timm" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", no_timm)
    import_timm.cache_clear()
    try:
        with pytest.raises(UnavailableError, match=r"pip install 'metal-edge\[train,vit\]'"):
            import_timm()
    finally:
        import_timm.cache_clear()


def test_our_models_need_no_timm() -> None:
    code = (
        "import sys\n"
        "for name in ('timm', 'torchvision', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "from metal_edge.models.registry import build_model\n"
        "from metal_edge.models.l2bt import L2BTConfig\n"
        "from metal_edge.models.anovit import AnoViTConfig\n"
        "build_model(L2BTConfig()); build_model(AnoViTConfig())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_our_own_vit_attends_over_the_whole_image() -> None:
    torch.manual_seed(0)
    vit = PlainViT(image_size=32, patch=8, width=16, depth=1, heads=2, mlp_ratio=2).eval()
    image = torch.rand(1, 3, 32, 32)
    changed = image.clone()
    changed[..., 24:, 24:] = 0
    with torch.no_grad():
        before, after = vit(image), vit(changed)
    assert before.shape == (1, 16, 4, 4)
    assert ((before != after).any(dim=1)).all()


def test_our_own_vit_cuts_squares_in_reading_order() -> None:
    vit = PlainViT(image_size=32, patch=8, width=16, depth=1, heads=2, mlp_ratio=2).eval()
    vit.blocks = torch.nn.Sequential()
    image = torch.zeros(1, 3, 32, 32)
    changed = image.clone()
    changed[0, :, 8:16, 24:32] = 1
    with torch.no_grad():
        moved = (vit(image) != vit(changed)).any(dim=1)[0]
    assert moved.nonzero().tolist() == [[1, 3]]
