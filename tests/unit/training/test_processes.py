"""Several processes give what one gives, decide alike, and none outlives a failure.

Real processes that meet through gloo. Each test pays seconds for their start, so each asks for
several things at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from support.training_case import NETWORK, config

from metal_edge.errors import OutputError
from metal_edge.models.metal import Metal
from metal_edge.training.config import TrainConfig
from metal_edge.training.devices import Hardware
from metal_edge.training.loop import Progress, Stop, Trainer, TrainingDivergedError
from metal_edge.training.processes import Job, TrainingProcessError, Watcher, train_in_processes

pytestmark = pytest.mark.timeout(120)
TRAIN = 11  # in batches of 5: shares of 3 and 2, and a last batch that leaves a process idle


def never() -> bool:
    return False


class Case:
    """A tiny network and its images, trained here or in processes, with one state file."""

    def __init__(self, folder: Path, settings: TrainConfig) -> None:
        torch.manual_seed(0)
        self.images = torch.randint(0, 256, (TRAIN + 3, 32, 32, 3), dtype=torch.uint8)
        self.model = Metal(NETWORK)
        self.settings = settings
        self.state_file = folder / "state.safetensors"
        self.seen: list[Progress] = []
        self.resumed: list[int] = []

    def here(self) -> Trainer:
        ticks = count()
        trainer = Trainer(
            self.model,
            self.images[:TRAIN],
            self.images[TRAIN:],
            self.settings,
            state_file=self.state_file,
            fingerprint="f",
            seconds=lambda: float(next(ticks)),
        )
        trainer.resume()
        return trainer

    def in_processes(
        self,
        interrupted: Callable[[], bool] = never,
        on_progress: Callable[[Progress], None] = lambda _: None,
        processes: int = 2,
        wait_s: float = 60,
    ) -> Stop:
        def note(progress: Progress) -> None:
            self.seen.append(progress)
            on_progress(progress)

        job = Job(
            network=NETWORK,
            training=self.settings,
            train_images=TRAIN,
            fingerprint="f",
            hardware=Hardware("cpu", processes, "32-true"),
            wait_s=wait_s,
        )
        watcher = Watcher(self.resumed.append, note, interrupted)
        return train_in_processes(job, self.model, self.images, self.state_file, watcher)


def assert_same_training(one: Trainer, other: Trainer) -> None:
    """Within what the order of float32 sums explains: measured 6e-8 on weights near 0.1."""
    assert one.position.step == other.position.step
    assert one.position.best_epoch == other.position.best_epoch
    for key in ("train_loss", "val_loss"):
        losses = [entry[key] for entry in one.position.history]
        assert losses == pytest.approx([e[key] for e in other.position.history], rel=1e-6)
    for name, tensor in one.best.items():
        torch.testing.assert_close(other.best[name], tensor, rtol=0, atol=2e-6, msg=name)


def children() -> set[int]:
    """Process ids whose parent is this process and that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(stat.parent.name))
    return found


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """Begun in one, taken over by two and finished in one, each left in the middle of an epoch.

    That two also train to the end is in tests/integration/test_cli_devices.py.
    """
    settings = config(epochs=400, batch_size=5, patience=1000)
    shared = Case(tmp_path / "shared", settings)
    begun = shared.here()
    assert begun.run(interrupted=lambda: begun.position.step >= 2) is Stop.INTERRUPTED

    before = children()
    stop = shared.in_processes(interrupted=lambda: len(shared.seen) >= 4)
    assert stop is Stop.INTERRUPTED
    assert children() == before
    assert shared.resumed == [0]
    resumed = shared.here()
    stopped = resumed.position.step
    assert 6 <= stopped < 1200
    assert [p.step for p in shared.seen] == list(range(3, stopped + 1))  # each from one process
    assert [p.epoch for p in shared.seen] == [(p.step + 2) // 3 for p in shared.seen]

    goal = stopped + 4
    assert resumed.run(interrupted=lambda: resumed.position.step >= goal) is Stop.INTERRUPTED
    alone = Case(tmp_path / "alone", settings).here()
    assert alone.run(interrupted=lambda: alone.position.step >= goal) is Stop.INTERRUPTED
    assert_same_training(alone, resumed)


@pytest.mark.parametrize("limit", ["early", "time"])
def test_all_processes_stop_at_the_same_limit(tmp_path: Path, limit: str) -> None:
    """Each has a clock of its own; were they to disagree, one would wait for the other."""
    if limit == "early":
        settings = config(
            epochs=50, batch_size=5, min_epochs=5, patience=3, learning_rate=1e-30, weight_decay=0
        )
    else:
        settings = config(epochs=10**6, batch_size=5, patience=10**6, max_minutes=0.01)
    shared = Case(tmp_path, settings)
    assert shared.in_processes(wait_s=30) is (Stop.EARLY if limit == "early" else Stop.TIME)
    reached = shared.here().position
    assert reached.epoch == 6 if limit == "early" else reached.elapsed_s >= 0.6


def test_a_loss_that_is_not_finite_is_the_usual_error(tmp_path: Path) -> None:
    case = Case(tmp_path, config(batch_size=5))
    with torch.no_grad():
        case.model.decoder[0].weight.fill_(float("inf"))
    before = children()
    with pytest.raises(TrainingDivergedError, match="the loss became nan in epoch 0"):
        case.in_processes()
    assert children() == before


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_at_once(tmp_path: Path, victim: int) -> None:
    case = Case(tmp_path, config(epochs=10**6, batch_size=5, patience=10**6, save_every_s=0))
    before = children()
    killed_at = []

    def kill(progress: Progress) -> None:
        if progress.step > 2 and not killed_at:  # a state was saved before
            killed_at.append(time.monotonic())
            os.kill(sorted(children() - before)[victim], signal.SIGKILL)

    with pytest.raises(TrainingProcessError, match=f"process {victim + 1} of 2 was ended by SIGK"):
        case.in_processes(on_progress=kill)
    assert time.monotonic() - killed_at[0] < 15
    assert children() == before
    assert case.here().position.step > 0  # the state on disk is whole


def test_a_process_that_falls_silent_is_noticed(tmp_path: Path) -> None:
    case = Case(tmp_path, config(epochs=10**6, batch_size=5, patience=10**6))
    before = children()
    stopped = []

    def freeze(_: Progress) -> None:
        if not stopped:
            stopped.append(max(children() - before))
            os.kill(stopped[0], signal.SIGSTOP)

    with pytest.raises(TrainingProcessError, match="process 2 of 2 stopped answering"):
        case.in_processes(on_progress=freeze, wait_s=10)
    assert children() == before


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    """Only the first process writes; the other must not be left waiting for it."""
    case = Case(tmp_path, config(epochs=10**6, batch_size=5, patience=10**6, save_every_s=0))
    case.state_file = tmp_path / "file" / "state.safetensors"
    (tmp_path / "file").write_text("no folder")
    before = children()
    with pytest.raises(OutputError, match=r"cannot write .*state\.safetensors"):
        case.in_processes()
    assert children() == before
