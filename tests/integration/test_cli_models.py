"""L2BT and AnoViT from pictures to a bundle, by the same commands as MeTAL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.cli import Call, cli, listing, write_parts

from metal_edge.bundle import Bundle
from metal_edge.demo.dataset import write_dataset
from metal_edge.models.checkpoint import load_checkpoint
from metal_edge.models.vit import import_timm
from metal_edge.runtime.load import check_golden, load_runner

VIT = "timm:test_vit"  # timm's own tiny network for tests: 6 blocks of width 64, patch 16
TRAINING = ("--train-precision", "fp32", "--batch-size", 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 good parts, 4 good and 5 defective test parts."""
    folder = tmp_path_factory.mktemp("data") / "parts"
    write_dataset(folder, seed=3, train_good=24, test_good=4, per_defect=1)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as timm publishes them, with random content."""
    torch.manual_seed(0)
    network = import_timm().create_model("test_vit", pretrained=False)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.mark.timeout(900)  # six trainings and bundles: minutes on a busy machine
def test_train_evaluate_calibrate_export_and_build(
    call: Call, data: Path, weights: Path, tmp_path: Path
) -> None:
    """Each model and kind of backbone; the bundle proves itself on its golden images."""
    small, chain = ("--image-size", 64), "stride4,stride8+stride16-early"
    on_vit = ("--backbone", VIT, "--backbone-weights", weights, *small)
    kinds: dict[str, tuple[object, ...]] = {
        "l2bt": ("--model", "l2bt", *small, "--levels", chain, "--epochs", 20),
        "l2bt-vit": ("--model", "l2bt", *on_vit, "--levels", "1,2", "--epochs", 10),
        "anovit": ("--model", "anovit", *small, "--epochs", 10),
        "textures": ("--model", "metal-features", *small, "--preset", "textures", "--epochs", 3),
        "fine": ("--model", "metal-features", *small, "--preset", "fine", "--epochs", 3),
        "gradients": ("--model", "metal", "--error", "gradients", "--epochs", 3),
    }
    for name, options in kinds.items():
        run, bundle = tmp_path / name, tmp_path / f"{name}.bundle"
        trained = call("train", data, "-o", run, *TRAINING, *options)
        assert trained.code == 0, trained.err
        assert "validation loss" in trained.out
        calibrated = call("calibrate", run, "--json")
        assert calibrated.code == 0, calibrated.err
        # INT8 needs more training than these few epochs to agree where a memory is asked.
        precision = ("fp16",) if "--preset" in options else ("int8", "--no-sweep")
        built = call("build-engine", run, "--precision", *precision, "-o", bundle, "--json")
        assert built.code == 0, built.err
        assert built.json["bytes"] < built.json["fp32_bytes"]
        opened = Bundle.open(bundle)
        assert opened.manifest.model["kind"] == options[1]
        with load_runner(opened) as runner:
            assert check_golden(opened, runner).images >= 2
        evaluated = call("evaluate", bundle, "--data", data, "-o", tmp_path / "r", "--json")
        assert evaluated.code == 0, evaluated.err
        assert evaluated.json["counts"]["anomalous"] == 5
        assert 0 <= evaluated.json["pixel_auroc"] <= 1


def test_a_timm_encoder_is_trained_from_the_given_weights(
    call: Call, weights: Path, tmp_path: Path
) -> None:
    parts = write_parts(tmp_path / "parts", 12)
    on_vit = ("--model", "anovit", "--backbone", VIT, "--image-size", 64)
    done = call(
        "train", parts, "-o", tmp_path / "run", *on_vit, "--backbone-weights", weights,
        "--epochs", 1, "--learning-rate", 1e-8, *TRAINING,
    )  # fmt: skip
    assert done.code == 0, done.err
    model, meta = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert meta["model"]["backbone"] == VIT
    tensors, given = model.state_dict(), load_file(weights)
    key = "blocks.3.mlp.fc1.weight"
    torch.testing.assert_close(tensors[f"encoder.network.{key}"], given[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "case",
    [
        (("--model", "l2bt", "--backbone", "timm:vit_base_patch99"), 78, "no model"),
        (("--model", "l2bt", "--backbone", "timm:resnet18"), 78, "not a vision transformer"),
        (("--model", "l2bt", "--backbone", "resnet18"), 78, "neither efficientnet-lite0 nor timm"),
        (("--model", "anovit", "--backbone", "efficientnet-lite0"), 78, "neither scratch nor timm"),
        (("--model", "l2bt", "--backbone", VIT), 78, "no block 7, its blocks are 0 to 5"),
        (("--model", "l2bt", "--backbone", VIT, "--levels", "5,2"), 78, "shallow, then deep"),
        (("--model", "l2bt", "--levels", "stride8"), 78, "two different levels"),
        (("--model", "anovit", "--levels", "1,2"), 78, "--levels is not an option of"),
        (("--model", "l2bt", "--image-size", 200), 78, "e.g. --image-size 224"),
        (("--model", "anovit", "--image-size", 200), 78, "not a multiple of patch_size 16"),
        (("--model", "anovit", "--backbone", VIT, "--image-size", 100), 78, "--image-size 96"),
        (("--model", "metal", "--backbone", VIT), 78, "--backbone is not an option of"),
        (("--model", "l2bt", "--backbone-weights", "x.safetensors"), 78, "brings its own weights"),
        (
            ("--model", "anovit", "--backbone", VIT, "--backbone-weights", "none.safetensors"),
            66,
            "none.safetensors not found",
        ),
        (("--error", "gradients"), 78, "--error is not an option of --model metal-features"),
        (("--model", "metal", "--preset", "fine"), 78, "--model metal has no preset fine"),
        (("--model", "l2bt", "--preset", "textures"), 78, "--model l2bt has no preset textures"),
        (("--preset", "fine", "--backbone", VIT), 78, "--preset fine names stages of"),
    ],
)  # fmt: skip
def test_options_that_cannot_work(
    call: Call, data: Path, tmp_path: Path, case: tuple[tuple[object, ...], int, str]
) -> None:
    options, code, said = case
    result = call("train", data, "-o", tmp_path / "run", *options)
    assert result.code == code, result.err
    assert said in result.error
    assert not listing(tmp_path)


def test_weights_that_are_absent_stop_the_command_before_images_are_read(
    data: Path, tmp_path: Path
) -> None:
    result = cli(
        *("train", data, "-o", tmp_path / "run", "--model", "anovit", "--backbone", VIT),
        environment={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
    )
    assert result.code == 69
    assert "weights of timm's test_vit cannot be had" in result.error
    assert "--backbone-weights FILE" in result.error
    assert "images to train on" not in result.err
    assert not (tmp_path / "run").exists()
