"""The training loop: epochs, validation, early stop, time budget, resume, clean interruption.

Everything random follows from `TrainConfig.seed` and the epoch number, so a run that was
interrupted and resumed takes exactly the steps of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from metal_edge.errors import MetalEdgeError
from metal_edge.models.base import AnomalyModel
from metal_edge.models.checkpoint import state_of
from metal_edge.training.config import Precision, Schedule, TrainConfig
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
    """Reported after every batch. `fraction` is 0..1 of whichever limit comes first."""

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
    ) -> None:
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
        self.position = Position()
        self.best: dict[str, Tensor] = {}
        self.autocast = uses_bf16(config.precision)

    def resume(self) -> bool:
        """Continues from the state file if there is one."""
        if not self.state_file.exists():
            return False
        self.position, self.best = load_state(
            self.state_file, self.model, self.optimizer, self.fingerprint
        )
        return True

    def save(self) -> None:
        """Writes the state file."""
        save_state(
            self.state_file,
            self.position,
            self.model,
            self.optimizer,
            best=self.best,
            fingerprint=self.fingerprint,
        )

    def run(
        self,
        on_progress: Callable[[Progress], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Stop:
        """Trains to the end, leaves the best weights in the model, and says why it stopped.

        Raises:
            TrainingDivergedError: the loss is not finite; the last saved state is kept.
        """
        last_save = self.seconds()
        while (stop := self._finished()) is None:
            before = self.seconds()
            loss = self._one_step()
            self.position.elapsed_s += self.seconds() - before
            on_progress(self._progress(loss))
            if interrupted():
                self.save()
                return Stop.INTERRUPTED
            if self.seconds() - last_save >= self.config.save_every_s:
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
        loss = self._loss_of(self.train_images[chosen])
        if not math.isfinite(value := loss.item()):
            raise TrainingDivergedError(
                f"the loss became {value} in epoch {position.epoch}",
                "lower --learning-rate, or use --train-precision fp32",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        position.step += 1
        position.step_in_epoch += 1
        position.loss_sum += value
        if position.step_in_epoch * size >= len(self.train_images):
            self._end_epoch()
        return value

    def _loss_of(self, batch: Tensor) -> Tensor:
        target = self.model.target(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            reconstruction = self.model(target)
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
        with torch.inference_mode():
            batches = torch.split(self.val_images, self.config.batch_size)
            total = sum(self._loss_of(batch).item() * len(batch) for batch in batches)
        value = total / len(self.val_images)
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

    def _progress(self, loss: float) -> Progress:
        position = self.position
        return Progress(
            position.epoch,
            position.step,
            self._fraction(),
            loss,
            position.best_loss,
            position.elapsed_s,
        )


def uses_bf16(precision: Precision) -> bool:
    """Whether the forward pass runs in bfloat16.

    AUTO says yes where the CPU multiplies bfloat16 natively: three times faster there, slower
    elsewhere.
    """
    if precision is not Precision.AUTO:
        return precision is Precision.BF16
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
