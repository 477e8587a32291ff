"""`metal-edge train --accelerator gpu` on a real GPU, up to a bundle that runs without one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from support.cli import Running, listing, must

from metal_edge.demo.dataset import write_dataset
from metal_edge.models.checkpoint import load_tensors

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"
)
WHERE = ("--accelerator", "gpu")
# The least that each network takes.
SMALL: dict[str, tuple[object, ...]] = {
    "metal": (),
    "metal-features": ("--image-size", 64),
    "l2bt": ("--image-size", 64),
    "anovit": ("--image-size", 64),
}
SAID = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "auto": "bf16-mixed"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "parts"
    write_dataset(folder, seed=3, train_good=24, test_good=4, per_defect=1)
    return folder


def options(model: str, epochs: int, precision: str) -> tuple[object, ...]:
    budget = ("--epochs", epochs, "--max-minutes", 1000, "--batch-size", 4, "--seed", 5)
    return ("--model", model, *SMALL[model], *budget, "--train-precision", precision, *WHERE)


def losses(run: Path) -> list[float]:
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    return [entry["val_loss"] for entry in history]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", list(SMALL))
def test_every_model_learns_in_every_arithmetic(
    parts: Path, tmp_path: Path, model: str, precision: str
) -> None:
    done = must("train", parts, "-o", tmp_path / "run", *options(model, 12, precision))
    assert f"training on 1 GPU(s), {SAID[precision]}" in done.err
    tensors, _ = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    history = losses(tmp_path / "run")
    assert min(history) < history[0]


def test_stopped_on_the_gpu_it_goes_on_there(parts: Path, tmp_path: Path) -> None:
    """And comes out where an uninterrupted run does."""
    command = ("train", parts, *options("l2bt", 40, "fp32"))
    run, whole = tmp_path / "run", tmp_path / "whole"
    with Running(tmp_path / "log", *command, "-o", run, "--save-every", 0) as training:
        training.wait_for((run / "state.safetensors").exists, "a saved state")
        assert training.stop(signal.SIGINT) == 130
        assert training.err.count("the same command goes on from there") == 1
    resumed = must(*command, "-o", run)
    assert resumed.err.count("going on from epoch") == 1
    must(*command, "-o", whole)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-3)


def test_a_network_trained_on_the_gpu_is_the_one_trained_without(
    parts: Path, tmp_path: Path
) -> None:
    """To rounding: the same split, order and weights; no product of fewer bits than FP32 has."""
    gpu, cpu = (tmp_path / name for name in ("gpu", "cpu"))
    must("train", parts, "-o", gpu, *options("l2bt", 4, "fp32"))
    must("train", parts, "-o", cpu, *options("l2bt", 4, "fp32"), "--accelerator", "cpu")
    assert listing(gpu).keys() == listing(cpu).keys()
    assert losses(gpu) == pytest.approx(losses(cpu), rel=1e-3)


def test_its_bundle_runs_without_a_gpu(parts: Path, tmp_path: Path) -> None:
    run, bundle, hidden = tmp_path / "run", tmp_path / "part.bundle", {"CUDA_VISIBLE_DEVICES": ""}
    must("train", parts, "-o", run, *options("l2bt", 20, "auto"))
    must("build-engine", run, "--backend", "onnxruntime", "-o", bundle, environment=hidden)
    evaluated = must("evaluate", bundle, "--data", parts, "-o", tmp_path / "report", "--json")
    assert evaluated.json["counts"]["anomalous"] == 5
