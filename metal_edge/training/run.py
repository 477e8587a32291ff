"""A run on disk: what it was trained on and how, its resumable state, its checkpoint.

Layout::

    RUN/
      run.json                 dataset, split by content hash, preprocessing, configuration
      state.safetensors        only while training is unfinished
      checkpoint.safetensors   best weights, with the architecture in the header
      history.json             losses per epoch
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from metal_edge.data import (
    GoodSplit,
    check_images,
    load_dataset,
    load_images,
    split_good,
    to_record,
)
from metal_edge.domain import Preprocess
from metal_edge.errors import DataError, MissingInputError, OutputError
from metal_edge.files import write_text
from metal_edge.models.base import AnomalyModel, weighting_of
from metal_edge.models.checkpoint import save_checkpoint
from metal_edge.models.registry import NetworkConfig, build_model
from metal_edge.training.config import TrainConfig
from metal_edge.training.devices import (
    Compute,
    Devices,
    check_work,
    on_one_device,
    resolve,
)
from metal_edge.training.loop import Progress, Stop, Trainer
from metal_edge.training.precompute import mean_error, precompute
from metal_edge.training.processes import WAIT_S, Job, Watcher, train_in_processes

RECORD = "run.json"
STATE = "state.safetensors"
CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.json"
DEFAULT_DEVICES = Devices()


class RunRecord(BaseModel):
    """Everything that determines a run's result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    dataset: str
    preprocess: Preprocess
    split: dict[str, Any]
    network: NetworkConfig
    training: TrainConfig

    @property
    def fingerprint(self) -> str:
        """SHA-256 over images and configuration.

        Where the data set lies and how often the state is saved does not change the result.
        """
        content = self.model_dump(
            mode="json", exclude={"dataset": True, "training": {"save_every_s"}}
        )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A run about to be trained: its record and the samples behind it."""

    record: RunRecord
    split: GoodSplit


@dataclass(frozen=True)
class Outcome:
    """What training left behind."""

    stop: Stop
    epochs: int
    steps: int
    elapsed_s: float
    best_loss: float
    parameters: int


def plan_run(
    dataset: Path,
    network: NetworkConfig,
    training: TrainConfig,
    *,
    crop: tuple[int, int, int, int] | None = None,
    allow_mixed_sizes: bool = False,
    held_out: float = 0.15,
) -> Plan:
    """Reads a data folder (headers and hashes only) and decides who is trained on.

    Args:
        dataset: MVTec layout, or a folder of good images.
        network, training: the configuration.
        crop: part of the frame to inspect, x, y, width, height in pixels.
        allow_mixed_sizes: resize images of any size instead of refusing them.
        held_out: share of the good images kept for the threshold.

    Raises:
        MissingInputError, DataError: see `data`.
    """
    root = dataset.expanduser().resolve()
    found = load_dataset(root)
    source = check_images(found.train, allow_mixed_sizes)
    _check_names([root, *(sample.path for sample in found.train)])
    split = split_good(found.train, training.seed, calibration_fraction=held_out)
    size = network.image_size
    preprocess = Preprocess(source.width, source.height, size, size, crop)
    record = RunRecord(
        dataset=str(root),
        preprocess=preprocess,
        split=to_record(split, root),
        network=network,
        training=training,
    )
    return Plan(record, split)


def _check_names(paths: Sequence[Path]) -> None:
    """A run's record is JSON, which holds no other bytes than text."""
    for path in paths:
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"the name {str(path)!r} is not UTF-8 text", "rename it") from error


def read_record(run: Path) -> RunRecord:
    """Opens RUN/run.json.

    Raises:
        MissingInputError: no run there.
        DataError: the record is damaged.
    """
    path = run / RECORD
    if run.is_file():
        raise MissingInputError(
            f"{run} is a file, not a run",
            "name the folder that `metal-edge train` made: a model file alone has no held-out"
            " pictures for a threshold and golden images",
        )
    if not path.is_file():
        raise MissingInputError(
            f"{run} is not a run (no {RECORD})",
            f"make one with `metal-edge train DATASET -o {run}`",
        )
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise DataError(f"{path} cannot be read ({_first_line(error)})", "train again") from error


def is_complete(run: Path) -> bool:
    """Whether training ended there."""
    return (run / CHECKPOINT).is_file() and not (run / STATE).exists()


def claim(run: Path, plan: Plan, fresh: bool) -> None:
    """Makes sure `run` may be written: new, empty, or the same run begun before.

    Changes nothing: with `fresh`, any run may lie there, for `discard` to remove.

    Raises:
        OutputError: something else lies there.
    """
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        return
    if not (run / RECORD).is_file():
        raise OutputError(f"{run} exists and is not a run", "choose another folder with -o")
    if not fresh and read_record(run).fingerprint != plan.record.fingerprint:
        raise OutputError(
            f"{run} holds a run with other images or options",
            "choose another folder with -o, or replace it with --fresh",
        )


def discard(run: Path) -> None:
    """Removes a run and whatever else lies in its folder; nothing there is fine.

    Raises:
        OutputError: something cannot be removed.
    """
    if not run.exists():
        return
    try:
        shutil.rmtree(run)
    except OSError as error:
        raise OutputError(
            f"cannot remove {error.filename or run} ({error.strerror or error})",
            "correct its permissions, or choose another folder with -o",
        ) from error


def load_plan(plan: Plan, on_load: Callable[[int, int], None]) -> NDArray[np.uint8]:
    """uint8 [train + val, S, S, 3], training images first; nothing is written yet.

    The held-out images are read as well: a damaged one must not be found after the training.

    Raises:
        MissingInputError, DataError: an image that cannot be used, or that shows nothing.
    """
    size, split = plan.record.preprocess, plan.split
    samples = (*split.train, *split.val, *split.calibration)
    images = load_images(samples, size.width, size.height, size.crop, on_load)
    for sample, image in zip(samples, images, strict=True):
        if (image == image[0, 0]).all():  # a closed lens, an overexposed frame, a crop beside it
            raise DataError(
                f"{sample.path} shows one flat colour and no part",
                "remove it, or correct the exposure or --crop",
            )
    return images[: len(split.train) + len(split.val)]


@dataclass(frozen=True)
class Prepared:
    """A model ready to be trained, and what it stores per image, training images first."""

    model: AnomalyModel
    stored: Tensor


def prepare_model(
    plan: Plan, images: NDArray[np.uint8], on_done: Callable[[int, int], None]
) -> Prepared:
    """Builds the network (backbone weights included) and runs its frozen part on every image.

    Raises:
        UnavailableError: the backbone's weights are not installed.
    """
    record = plan.record
    torch.manual_seed(record.training.seed)
    model = build_model(record.network)
    model.load_pretrained()
    stored = precompute(model, torch.from_numpy(images), on_done)
    model.fit_inputs(stored[: len(plan.split.train)])
    return Prepared(model, stored)


def train_run(
    run: Path,
    plan: Plan,
    prepared: Prepared,
    *,
    seconds: Callable[[], float],
    devices: Devices = DEFAULT_DEVICES,
    on_resume: Callable[[int], None] = lambda _epoch: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Trains (or goes on training) the planned run and writes its checkpoint.

    When interrupted, the state is saved and the outcome says so; the same call goes on later.

    Args:
        run: the run's folder, claimed before.
        plan: from `plan_run`.
        prepared: from `prepare_model`.
        seconds: a monotonic clock.
        devices: what computes; of several, each has a process of its own.
        on_resume: told the number of epochs that earlier sittings finished.
        on_progress: called after every batch.
        interrupted: asked after every batch, or several times a second.

    Raises:
        MetalEdgeError: devices that are not there or too many, an unwritable place, a diverging
            loss, a training process that died.
    """
    record, model, boundary = plan.record, prepared.model, len(plan.split.train)
    hardware = resolve(devices, record.training.precision)
    check_work(hardware, boundary, record.training.batch_size)
    write_text(run / RECORD, record.model_dump_json(indent=2) + "\n")
    if hardware.count > 1:
        job = Job(
            network=record.network,
            training=record.training,
            train_images=boundary,
            fingerprint=record.fingerprint,
            hardware=hardware,
            wait_s=WAIT_S,
        )
        watcher = Watcher(on_resume, on_progress, interrupted)
        stop = train_in_processes(job, model, prepared.stored, run / STATE, watcher)
        # What the processes reached lies in the state file.
        trainer = _trainer(run, plan, prepared, seconds)
        trainer.resume()
        if stop is not Stop.INTERRUPTED:
            model.load_state_dict(trainer.best)
    else:
        trainer = _trainer(run, plan, prepared, seconds, on_one_device(hardware))
        if trainer.resume():
            on_resume(trainer.position.epoch)
        stop = trainer.run(on_progress, interrupted)
        model.cpu()
    outcome = Outcome(
        stop,
        trainer.position.epoch,
        trainer.position.step,
        trainer.position.elapsed_s,
        trainer.position.best_loss,
        sum(p.numel() for p in model.parameters()),
    )
    if stop is not Stop.INTERRUPTED:
        model.fit_errors(prepared.stored)
        expected = mean_error(model, prepared.stored[:boundary])
        model.expected_error.copy_(weighting_of(expected))
        _finish(run, trainer, record)
    return outcome


def _trainer(
    run: Path,
    plan: Plan,
    prepared: Prepared,
    seconds: Callable[[], float],
    compute: Compute | None = None,
) -> Trainer:
    boundary = len(plan.split.train)
    return Trainer(
        prepared.model,
        prepared.stored[:boundary],
        prepared.stored[boundary:],
        plan.record.training,
        state_file=run / STATE,
        fingerprint=plan.record.fingerprint,
        seconds=seconds,
        compute=compute,
    )


def _finish(run: Path, trainer: Trainer, record: RunRecord) -> None:
    position = trainer.position
    write_text(run / HISTORY, json.dumps(position.history, indent=1) + "\n")
    meta = {
        "run": record.fingerprint,
        "best_epoch": position.best_epoch,
        "val_loss": position.best_loss,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    save_checkpoint(run / CHECKPOINT, trainer.model, meta)
    (run / STATE).unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
