"""The loop's promises: resume is exact, limits end it, divergence is loud."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from support.training_case import NETWORK, config

from metal_edge.errors import DataError
from metal_edge.models.metal import Metal
from metal_edge.training.config import TrainConfig
from metal_edge.training.loop import Progress, Stop, Trainer, TrainingDivergedError


def trainer(folder: Path, settings: TrainConfig, fingerprint: str = "f") -> Trainer:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (13, 32, 32, 3), dtype=torch.uint8)
    ticks = count()
    return Trainer(
        Metal(NETWORK),
        images[:10],
        images[10:],
        settings,
        state_file=folder / "state.safetensors",
        fingerprint=fingerprint,
        seconds=lambda: float(next(ticks)),
    )


@pytest.mark.parametrize("stop_at", [1, 2, 3, 5, 11])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    """Stops inside an epoch, at its end and before the last step; 10 images, batches of 4."""
    whole = trainer(tmp_path / "whole", config())
    assert whole.run() is Stop.EPOCHS
    steps = count(1)
    first = trainer(tmp_path / "cut", config())
    assert first.run(interrupted=lambda: next(steps) >= stop_at) is Stop.INTERRUPTED
    assert first.position.step == stop_at
    second = trainer(tmp_path / "cut", config())
    assert second.resume()
    assert second.run() is Stop.EPOCHS
    assert second.position.history == whole.position.history
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_progress_names_the_epoch_of_the_batch(tmp_path: Path) -> None:
    """From one, and never one more than there are; 10 images are three batches of 4."""
    seen: list[Progress] = []
    trainer(tmp_path, config(epochs=2)).run(on_progress=seen.append)
    assert [p.epoch for p in seen] == [1, 1, 1, 2, 2, 2]
    assert seen[-1].fraction == 1.0


def test_the_best_epoch_is_what_remains(tmp_path: Path) -> None:
    run = trainer(tmp_path, config(epochs=6, learning_rate=0.05))
    run.run()
    losses = [entry["val_loss"] for entry in run.position.history]
    assert run.position.best_loss == min(losses)
    assert run._validate() == pytest.approx(min(losses), rel=1e-6)


def test_early_stop_waits_for_min_epochs_and_patience(tmp_path: Path) -> None:
    """A rate of (nearly) nothing stops improving at once."""
    run = trainer(
        tmp_path, config(epochs=50, min_epochs=5, patience=3, learning_rate=1e-30, weight_decay=0)
    )
    assert run.run() is Stop.EARLY
    assert run.position.epoch == 6


def test_a_time_budget_counts_all_sittings(tmp_path: Path) -> None:
    """The fake clock gives each step one second; the budget is six."""
    limited = config(epochs=100, max_minutes=0.1)
    steps = count(1)
    first = trainer(tmp_path, limited)
    first.run(interrupted=lambda: next(steps) >= 4)
    second = trainer(tmp_path, limited)
    second.resume()
    assert second.run() is Stop.TIME
    assert second.position.step == 6


def test_state_is_saved_on_the_way(tmp_path: Path) -> None:
    seen: list[bool] = []
    run = trainer(tmp_path, config(save_every_s=0))

    def look(_: Progress) -> None:
        seen.append((tmp_path / "state.safetensors").exists())

    run.run(on_progress=look)
    assert seen[0] is False
    assert all(seen[1:])


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, config()).save()
    with pytest.raises(DataError, match="other images or options"):
        trainer(tmp_path, config(), fingerprint="g").resume()


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    run = trainer(tmp_path, config())
    with torch.no_grad():
        run.model.decoder[0].weight.fill_(float("inf"))
    with pytest.raises(TrainingDivergedError, match="loss became"):
        run.run()
