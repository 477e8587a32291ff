"""One cell's model: trained by the package's own loop, or PatchCore's bank filled."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from metal_edge.data import GoodSplit
from metal_edge.domain import Preprocess
from metal_edge.errors import MetalEdgeError
from metal_edge.files import write_text
from metal_edge.models.base import AnomalyModel, ModelConfig
from metal_edge.models.checkpoint import load_checkpoint
from metal_edge.training.config import TrainConfig
from metal_edge.training.loop import Progress, Stop
from metal_edge.training.precompute import CHUNK
from metal_edge.training.run import (
    CHECKPOINT,
    HISTORY,
    Plan,
    claim,
    discard,
    is_complete,
    load_plan,
    plan_run,
    prepare_model,
    train_run,
)
from tools.results.patchcore import PatchCore, PatchCoreConfig

PREPARED = "prepared.json"
# Figures on the page need no threshold, so nearly all good images train; some stay unseen to check
# the exported graph with.
HELD_OUT = 0.05
Advance = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Hooks:
    """The world outside a cell.

    Attributes:
        seconds: a monotonic clock.
        utc: the time of day.
        interrupted: whether the person wants to stop.
        progress: opens a progress display for a named stage.
    """

    seconds: Callable[[], float]
    utc: Callable[[], datetime]
    interrupted: Callable[[], bool]
    progress: Callable[[str], AbstractContextManager[Advance]]

    def counted(self, advance: Advance) -> Callable[[int, int], None]:
        """(done, total) for a stage, which ends it when the person wants to stop."""

        def step(done: int, total: int) -> None:
            if self.interrupted():
                raise KeyboardInterrupt
            advance(done, total, "")

        return step


@dataclass(frozen=True)
class Fitted:
    """A model ready to be exported.

    Attributes:
        split: who trained it; its calibration images are unseen.
        minutes: reading, frozen part and training, over all sittings.
        stop: why training ended.
    """

    model: AnomalyModel
    preprocess: Preprocess
    split: GoodSplit
    minutes: float
    epochs: int
    parameters: int
    stop: str


def fit(
    root: Path, network: ModelConfig, training: TrainConfig, folder: Path, hooks: Hooks
) -> Fitted:
    """Trains `network` on the good images of `root`, or goes on where a sitting before stopped.

    Args:
        folder: where the run is kept; a run of another configuration there is replaced.

    Raises:
        KeyboardInterrupt: the person stopped it; the run's state is saved.
        MetalEdgeError: unusable data, missing weights, a diverging loss.
    """
    if isinstance(network, PatchCoreConfig):
        return _fill_bank(root, network, training, hooks)
    plan = plan_run(root, network, training, allow_mixed_sizes=True, held_out=HELD_OUT)  # type: ignore[arg-type]
    try:
        claim(folder, plan, fresh=False)
    except MetalEdgeError:  # damaged, or of another configuration: nobody's work is lost
        discard(folder)
    stop = "trained before" if is_complete(folder) else _train(folder, plan, hooks)
    model, _ = load_checkpoint(folder / CHECKPOINT)
    history = json.loads((folder / HISTORY).read_bytes())
    prepared_s = json.loads((folder / PREPARED).read_bytes())["seconds"]
    return Fitted(
        model,
        plan.record.preprocess,
        plan.split,
        (prepared_s + history[-1]["elapsed_s"]) / 60,
        len(history),
        sum(p.numel() for p in model.parameters()),
        stop,
    )


def _train(folder: Path, plan: Plan, hooks: Hooks) -> str:
    begun = hooks.seconds()
    with hooks.progress("reading images") as advance:
        images = load_plan(plan, hooks.counted(advance))
    with hooks.progress("running the frozen part") as advance:
        prepared = prepare_model(plan, images, hooks.counted(advance))
    # Of this sitting only: what an uninterrupted run would have spent once.
    write_text(folder / PREPARED, json.dumps({"seconds": hooks.seconds() - begun}) + "\n")
    with hooks.progress("training") as advance:

        def on_progress(p: Progress) -> None:
            note = f"epoch {p.epoch}  loss {p.loss:.4f}  best {p.best_loss:.4f}"
            advance(round(1000 * p.fraction), 1000, note)

        outcome = train_run(
            folder,
            plan,
            prepared,
            seconds=hooks.seconds,
            on_progress=on_progress,
            interrupted=hooks.interrupted,
        )
    if outcome.stop is Stop.INTERRUPTED:
        raise KeyboardInterrupt
    return str(outcome.stop)


def _fill_bank(root: Path, network: PatchCoreConfig, training: TrainConfig, hooks: Hooks) -> Fitted:
    """PatchCore has no validation: its bank also gets the images that others validate on."""
    begun = hooks.seconds()
    plan = plan_run(root, network.features, training, allow_mixed_sizes=True, held_out=HELD_OUT)
    with hooks.progress("reading images") as advance:
        images = torch.from_numpy(load_plan(plan, hooks.counted(advance)))
    model = PatchCore(network)
    model.load_pretrained()
    with hooks.progress("running the frozen part") as advance, torch.no_grad():
        step, tokens = hooks.counted(advance), []
        for piece in torch.split(images, CHUNK):
            tokens.append(model.precompute(piece).flatten(0, 1))
            step(len(tokens) * CHUNK, len(images))
    with hooks.progress("choosing the coreset") as advance, torch.no_grad():
        generator = torch.Generator().manual_seed(training.seed)
        model.fit(torch.cat(tokens), generator, hooks.counted(advance))
    minutes = (hooks.seconds() - begun) / 60
    return Fitted(
        model.eval(), plan.record.preprocess, plan.split, minutes, 0, model.size, "bank filled"
    )
