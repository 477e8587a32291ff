"""The training loop: epochs, validation, early stop, time budget, resume, clean interruption.

Everything random follows from `TrainConfig.seed` and the epoch number, so a run that was
interrupted and resumed takes exactly the steps of one that was not.

With several processes each takes a share of every batch, and the first one's clock, wish to stop
and validation loss hold for all: whatever they decide, they decide alike, and none is left
waiting for another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor, nn

from metal_edge.errors import MetalEdgeError
from metal_edge.models.base import AnomalyModel
from metal_edge.models.checkpoint import state_of
from metal_edge.training.config import Schedule, TrainConfig
from metal_edge.training.devices import Compute, Devices, on_one_device, resolve
from metal_edge.training.state import Position, load_state, save_state

_FLOOR = 0.01  # a cosine run ends at this share of the learning rate


class TrainingDivergedError(MetalEdgeError):
    """The loss stopped being a finite number."""


class Stop(StrEnum):
    """Why a run ended."""

    EPOCHS = "all epochs done"
    EARLY = "no improvement on the validation images"
    TIME = "time budget used up"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Progress:
    """Reported after every batch by the first process.

    `epoch` is the batch's own, from 1; `fraction` is 0..1 of whichever limit comes first.
    """

    epoch: int
    step: int
    fraction: float
    loss: float
    best_loss: float
    elapsed_s: float


class Trainer:
    """Trains one network on what it stores of each image, held in memory.

    Args:
        model: the network; trained in place.
        train: what the model stores per image ([N, ...], see `AnomalyModel.precompute`), good
            parts only.
        val: the same for good parts that are never trained on.
        config: see TrainConfig.
        state_file: where the resumable state lives.
        fingerprint: identifies images and configuration across restarts.
        seconds: a monotonic clock, in seconds.
        compute: the devices; default: the CPU in this process.
    """

    def __init__(
        self,
        model: AnomalyModel,
        train: Tensor,
        val: Tensor,
        config: TrainConfig,
        *,
        state_file: Path,
        fingerprint: str,
        seconds: Callable[[], float],
        compute: Compute | None = None,
    ) -> None:
        self.compute = compute or on_one_device(resolve(Devices(), config.precision))
        self.model = model
        self.train_images = train
        self.val_images = val
        self.config = config
        self.state_file = state_file
        self.fingerprint = fingerprint
        self.seconds = seconds
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        # Wrapped for the devices: gradients averaged over processes, autocast, loss scaling.
        self._network, self._stepper = self.compute.fabric.setup(model, self.optimizer)
        self.position = Position()
        self.best: dict[str, Tensor] = {}

    def resume(self) -> bool:
        """Continues from the state file if there is one."""
        if not self.state_file.exists():
            return False
        self.position, self.best, scaler = load_state(
            self.state_file, self.model, self.optimizer, self.fingerprint
        )
        self.compute.load_scaler_state(scaler)
        return True

    def save(self) -> None:
        """Writes the state file, in the first process."""
        if not self.compute.first:
            return
        save_state(
            self.state_file,
            self.position,
            self.model,
            self.optimizer,
            best=self.best,
            fingerprint=self.fingerprint,
            scaler=self.compute.scaler_state(),
        )

    def run(
        self,
        on_progress: Callable[[Progress], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Stop:
        """Trains to the end, leaves the best weights in the model, and says why it stopped.

        Args:
            on_progress: called after every batch, in the first process.
            interrupted: asked after every batch; the first process's answer holds for all.

        Raises:
            TrainingDivergedError: the loss is not finite; the last saved state is kept.
        """
        last_save = self.seconds()
        while (stop := self._finished()) is None:
            epoch, before = self.position.epoch, self.seconds()
            loss = self._one_step()
            elapsed, asked, due = self.compute.from_first(
                self.seconds() - before,
                interrupted(),
                self.seconds() - last_save >= self.config.save_every_s,
            )
            self.position.elapsed_s += elapsed
            if self.compute.first:
                on_progress(self._progress(epoch + 1, loss))
            if asked:
                self.save()
                return Stop.INTERRUPTED
            if due:
                self.save()
                last_save = self.seconds()
        if self.position.step_in_epoch:  # a time budget ends inside an epoch: judge that part too
            self._end_epoch()
        self.model.load_state_dict(self.best)
        return stop

    def _one_step(self) -> float:
        position, size = self.position, self.config.batch_size
        chosen = self._order(position.epoch)[position.step_in_epoch * size :][:size]
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate_factor()
        self.model.train()
        own = self.compute.share(chosen)
        # A last batch may be smaller than the processes are many: the idle ones join the
        # gradients' exchange with an image that counts nothing.
        batch = self.train_images[own if len(own) else chosen[:1]]
        loss = self._loss_of(self._network, batch)
        share = len(own) / len(chosen)
        (value,) = self.compute.total(loss.item() * share)
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the loss became {value} in epoch {position.epoch}",
                "lower --learning-rate, or use --train-precision fp32",
            )
        self.optimizer.zero_grad(set_to_none=True)
        # Gradients are averaged over processes: scaled so that the average is the batch's mean.
        self.compute.fabric.backward(loss * (share * self.compute.world))
        self._stepper.step()
        position.step += 1
        position.step_in_epoch += 1
        position.loss_sum += value
        if position.step_in_epoch * size >= len(self.train_images):
            self._end_epoch()
        return value

    def _loss_of(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Mean over the images of `batch`, through the wrapped network or the bare one."""
        target = self.model.target(batch.to(self.compute.fabric.device))
        with self.compute.fabric.autocast():
            reconstruction = network(target)
        return self.model.loss(reconstruction.float(), target)

    def _end_epoch(self) -> None:
        position = self.position
        val = self._validate()
        position.history.append(
            {
                "epoch": position.epoch,
                "train_loss": position.loss_sum / position.step_in_epoch,
                "val_loss": val,
                "elapsed_s": position.elapsed_s,
            }
        )
        if val < position.best_loss:
            position.best_loss, position.best_epoch = val, position.epoch
            self.best = state_of(self.model)
        position.epoch += 1
        position.step_in_epoch = 0
        position.loss_sum = 0.0

    def _validate(self) -> float:
        self.model.eval()
        own = self.compute.share(torch.arange(len(self.val_images)))
        with torch.inference_mode():
            batches = torch.split(self.val_images[own], self.config.batch_size) if len(own) else ()
            own_total = sum(self._loss_of(self.model, b).item() * len(b) for b in batches)
        (total,) = self.compute.total(own_total)
        (value,) = self.compute.from_first(total / len(self.val_images))
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the validation loss became {value} in epoch {self.position.epoch}",
                "lower --learning-rate, or use --train-precision fp32",
            )
        return value

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.train_images), generator=generator)

    def _fraction(self) -> float:
        """0..1 of the epochs or of the time budget, whichever is further."""
        position, config = self.position, self.config
        per_epoch = math.ceil(len(self.train_images) / config.batch_size)
        done = (position.epoch + position.step_in_epoch / per_epoch) / config.epochs
        if config.max_minutes is not None:
            done = max(done, position.elapsed_s / (60 * config.max_minutes))
        return min(done, 1.0)

    def _rate_factor(self) -> float:
        if self.config.schedule is Schedule.CONSTANT:
            return 1.0
        done, warmup = self._fraction(), self.config.warmup
        if done < warmup:
            return max(_FLOOR, done / warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
        return max(_FLOOR, cosine)

    def _finished(self) -> Stop | None:
        position, config = self.position, self.config
        if position.epoch >= config.epochs:
            return Stop.EPOCHS
        limit = config.max_minutes
        if position.step and limit is not None and position.elapsed_s >= 60 * limit:
            return Stop.TIME
        stale = position.epoch - 1 - position.best_epoch
        if position.epoch > config.min_epochs and stale >= config.patience:
            return Stop.EARLY
        return None

    def _progress(self, epoch: int, loss: float) -> Progress:
        position = self.position
        return Progress(
            epoch,
            position.step,
            self._fraction(),
            loss,
            position.best_loss,
            position.elapsed_s,
        )
