"""Checkpoints: exact round trip, and refusal of everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metal_edge.errors import DataError, MissingInputError, OutputError
from metal_edge.models.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from metal_edge.models.metal import Metal, MetalConfig

CONFIG = MetalConfig(image_size=32, patch_size=8, embedding=8, heads=2)


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    model = Metal(CONFIG)
    save_checkpoint(tmp_path / "c.safetensors", model, {"note": "x"})
    again, meta = load_checkpoint(tmp_path / "c.safetensors")
    assert meta["note"] == "x"
    assert again.config == CONFIG
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"none\.safetensors"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, Metal(CONFIG), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(path)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(DataError):
        load_checkpoint(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = Metal(CONFIG)
    with torch.no_grad():
        model.decoder[0].bias[0] = float("nan")
    save_checkpoint(tmp_path / "c.safetensors", model, {})
    with pytest.raises(DataError, match=r"decoder\.0\.bias"):
        load_checkpoint(tmp_path / "c.safetensors")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    meta = {"model": CONFIG.model_copy(update={"blocks": 2}).model_dump(mode="json")}
    save_tensors(tmp_path / "c.safetensors", Metal(CONFIG).state_dict(), meta)
    with pytest.raises(DataError, match="does not fit"):
        load_checkpoint(tmp_path / "c.safetensors")


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "file" / "c.safetensors", Metal(CONFIG), {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
