"""`metal-edge train`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import ValidationError

from metal_edge.cli.console import progress, say, say_result, stop_requested
from metal_edge.cli.destination import check_folder
from metal_edge.errors import ExitCode, SettingsError
from metal_edge.models.anovit import SCRATCH, AnoViTConfig
from metal_edge.models.features import PRESETS, MetalFeaturesConfig
from metal_edge.models.l2bt import L2BTConfig
from metal_edge.models.metal import MetalConfig
from metal_edge.models.registry import NetworkConfig, check_pretrained
from metal_edge.models.tokens import DEEPEST_STRIDE, GRID, LITE0, TOKEN_STRIDE, TokenConfig
from metal_edge.models.vit import timm_name
from metal_edge.training.config import Precision, Schedule, TrainConfig
from metal_edge.training.devices import Accelerator, Devices, Hardware, check_work, resolve
from metal_edge.training.loop import Progress, Stop
from metal_edge.training.run import (
    CHECKPOINT,
    Outcome,
    Plan,
    claim,
    discard,
    is_complete,
    load_plan,
    plan_run,
    prepare_model,
    train_run,
)

# `paper` is each model's own publication: MeTAL sec. 4.2 and Table 2 (also for its idea on
# features), the public code of L2BT, the public log of AnoViT. `fast` fits a time budget on two
# cores: small batches, a higher rate that falls to zero as the budget ends (docs/training.md).
PAPER: dict[str, Any] = {
    "schedule": Schedule.CONSTANT,
    "learning_rate": 1e-4,
    "batch_size": 64,
    "epochs": 3000,
    "min_epochs": 500,
    "patience": 50,
}
PAPER_PER_MODEL: dict[str, dict[str, Any]] = {
    "metal-features": {},
    "metal": {},
    "l2bt": {"batch_size": 4, "epochs": 50, "min_epochs": 50},
    "anovit": {"batch_size": 8, "epochs": 200, "min_epochs": 0, "patience": 12},
}
FAST: dict[str, Any] = {
    "schedule": Schedule.COSINE,
    "batch_size": 16,
    "epochs": 3000,
    "min_epochs": 3000,
}
# What `fast` adds per model. Budgets are where longer training stopped paying on real sets.
FAST_PER_MODEL: dict[str, dict[str, Any]] = {
    "metal-features": {"learning_rate": 1e-3, "max_minutes": 5.0},
    "metal": {"learning_rate": 5e-4, "max_minutes": 10.0},
    "l2bt": {"learning_rate": 1e-3, "max_minutes": 5.0},
    "anovit": {"learning_rate": 5e-4, "max_minutes": 10.0},
}


PRESETS_OF = {"metal": ("products", "textures"), "metal-features": tuple(PRESETS)}

Tokens = TypeVar("Tokens", bound=TokenConfig)


@dataclass(frozen=True)
class TrainOptions:
    """The command's options as given; None means the recipe decides."""

    model: str
    backbone: str | None
    backbone_weights: Path | None
    levels: str | None
    image_size: int | None
    preset: str
    mask: str | None
    shapes: str | None
    blocks: int | None
    radius: int | None
    error: str | None
    weighting: bool
    held_out: float
    recipe: str
    max_minutes: float | None
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    seed: int
    crop: str | None
    mixed_sizes: bool
    train_precision: str
    accelerator: str
    devices: int
    save_every_s: float | None
    fresh: bool


def run_train(dataset: Path, out: Path, options: TrainOptions) -> None:
    """Plans, trains or goes on training, and says what came out."""
    check_folder(out)
    training = train_config(options)
    devices = Devices(Accelerator(options.accelerator), options.devices)
    hardware = resolve(devices, training.precision)
    plan = plan_run(
        dataset,
        network_of(options),
        training,
        crop=parse_crop(options.crop),
        allow_mixed_sizes=options.mixed_sizes,
        held_out=options.held_out,
    )
    check_work(hardware, len(plan.split.train), training.batch_size)
    claim(out, plan, options.fresh)
    if is_complete(out) and not options.fresh:
        say_result(f"{out} is already trained with these images and options (--fresh to repeat)")
        return
    if options.backbone is not None and timm_name(options.backbone) is not None:
        say(f"loading the weights of {options.backbone}")  # from a hub: a minute, if it is slow
    check_pretrained(plan.record.network)
    counts = {side: len(entries) for side, entries in plan.record.split.items()}
    say(
        f"{counts['train']} images to train on, {counts['val']} to watch the loss,"
        f" {counts['calibration']} held out for the threshold"
    )
    _say_hardware(hardware)
    outcome = _train(out, plan, devices, options.fresh)
    if outcome.stop is Stop.INTERRUPTED:
        epoch = _epoch_after(outcome.epochs, plan)
        say(f"stopped in epoch {epoch}; the same command goes on from there")
        raise typer.Exit(ExitCode.INTERRUPTED)
    say_result(
        f"{out / CHECKPOINT}: {outcome.parameters:,} parameters, {outcome.steps} steps in"
        f" {outcome.elapsed_s:.0f} s, validation loss {outcome.best_loss:.4f} ({outcome.stop})"
    )


def _say_hardware(hardware: Hardware) -> None:
    if hardware.kind == "cuda":
        say(f"training on {hardware.count} GPU(s), {hardware.precision}")
    elif hardware.count > 1:
        say(f"training in {hardware.count} processes, {hardware.precision}")
        if (cores := len(os.sched_getaffinity(0))) < hardware.count:
            say(f"which share {cores} processor core(s): --devices {cores} is faster")


def _epoch_after(finished: int, plan: Plan) -> int:
    """The epoch being worked on, from 1; a run may also be stopped at its very end."""
    return min(finished + 1, plan.record.training.epochs)


def _train(out: Path, plan: Plan, devices: Devices, fresh: bool) -> Outcome:
    with progress("reading images") as advance:
        images = load_plan(plan, lambda done, total: advance(done, total, ""))
    with progress("running the frozen backbone") as advance:
        prepared = prepare_model(plan, images, lambda done, total: advance(done, total, ""))
    if fresh:  # only now that nothing stands in the new run's way
        discard(out)
    with stop_requested() as asked, progress("training") as advance:

        def on_progress(p: Progress) -> None:
            note = f"epoch {p.epoch}  loss {p.loss:.4f}  best {p.best_loss:.4f}"
            advance(round(1000 * p.fraction), 1000, note)

        return train_run(
            out,
            plan,
            prepared,
            seconds=time.monotonic,
            devices=devices,
            on_resume=lambda done: say(f"going on from epoch {_epoch_after(done, plan)}"),
            on_progress=on_progress,
            interrupted=asked,
        )


def network_of(options: TrainOptions) -> NetworkConfig:
    """The architecture that the options name.

    Raises:
        SettingsError: options that do not go together, or that the architecture cannot have.
        UnavailableError: a timm backbone where timm is not installed.
    """
    if options.preset not in PRESETS_OF.get(options.model, ("products",)):
        raise SettingsError(
            f"--model {options.model} has no preset {options.preset}", "leave --preset out"
        )
    if options.model != "metal":
        _refuse_metal_options(options)
    try:
        match options.model:
            case "l2bt":
                return _over_tokens(L2BTConfig, options)
            case "metal-features":
                return _over_tokens(MetalFeaturesConfig, options)
            case "anovit":
                return _anovit(options)
        _refuse_backbone_options(options)
        return _metal(options)
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"{part}: " for part in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        raise SettingsError(
            f"--model {options.model}: {where}{what}", "see `metal-edge train --help`"
        ) from error


def _metal(options: TrainOptions) -> MetalConfig:
    given: dict[str, Any] = {
        "mask": options.mask,
        "radius": options.radius,
        "error": options.error,
    }
    given["blocks"] = options.blocks or (1 if options.preset == "products" else 2)
    if options.shapes is not None:
        given["shapes"] = tuple(part.strip() for part in options.shapes.split(","))
    return MetalConfig(
        weighting=options.weighting, **{k: v for k, v in given.items() if v is not None}
    )


def _over_tokens(config: type[Tokens], options: TrainOptions) -> Tokens:
    preset = PRESETS[options.preset] if config is MetalFeaturesConfig else {}
    given = preset | _given(options)
    if options.levels is not None:
        given["levels"] = tuple(part.strip() for part in options.levels.split(","))
    if options.radius is not None:
        given["radius"] = options.radius
    backbone = options.backbone or LITE0
    if timm_name(backbone) is not None and options.preset != "products":
        raise SettingsError(
            f"--preset {options.preset} names stages of {LITE0}", "leave it out for a ViT"
        )
    if timm_name(backbone) is not None:
        return config.for_vit(backbone, **given)
    if (size := options.image_size) is not None:
        # As many pixels per token as in the default, or as the preset has.
        default_size = preset.get("image_size", GRID * TOKEN_STRIDE)
        given["grid"] = size * preset.get("grid", GRID) // default_size
        if rest := size % DEEPEST_STRIDE:
            raise SettingsError(
                f"--image-size {size} is not a multiple of {DEEPEST_STRIDE}",
                f"e.g. --image-size {size + DEEPEST_STRIDE - rest}",
            )
    return config(backbone=backbone, **given)


def _anovit(options: TrainOptions) -> AnoViTConfig:
    if options.levels is not None:
        raise SettingsError("--levels is not an option of --model anovit", "leave it out")
    backbone = options.backbone or SCRATCH
    if timm_name(backbone) is None:
        return AnoViTConfig(backbone=backbone, **_given(options))
    return AnoViTConfig.for_vit(backbone, **_given(options))


def _given(options: TrainOptions) -> dict[str, Any]:
    """Fields that both backbone models have, as far as they were given."""
    file = options.backbone_weights
    values = {
        "image_size": options.image_size,
        "backbone_weights": None if file is None else str(file.expanduser().resolve()),
    }
    return {"weighting": options.weighting} | {k: v for k, v in values.items() if v is not None}


def _refuse_backbone_options(options: TrainOptions) -> None:
    given = {
        "--backbone": options.backbone,
        "--backbone-weights": options.backbone_weights,
        "--levels": options.levels,
        "--image-size": options.image_size,
    }
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise SettingsError(
            f"{wrong[0]} is not an option of --model {options.model}",
            "leave it out, or use another --model",
        )


def _refuse_metal_options(options: TrainOptions) -> None:
    given = {
        "--mask": options.mask,
        "--shapes": options.shapes,
        "--blocks": options.blocks,
        "--error": options.error,
        "--radius": None if options.model == "metal-features" else options.radius,
    }
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise SettingsError(
            f"{wrong[0]} is not an option of --model {options.model}",
            "leave it out, or use --model metal",
        )


def train_config(options: TrainOptions) -> TrainConfig:
    """The recipe with the given options on top."""
    common, per_model = (
        (PAPER, PAPER_PER_MODEL) if options.recipe == "paper" else (FAST, FAST_PER_MODEL)
    )
    recipe = common | per_model[options.model]
    given = {
        "max_minutes": options.max_minutes,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "save_every_s": options.save_every_s,
    }
    values = recipe | {k: v for k, v in given.items() if v is not None}
    return TrainConfig(seed=options.seed, precision=Precision(options.train_precision), **values)


def parse_crop(text: str | None) -> tuple[int, int, int, int] | None:
    """`X,Y,W,H` -> four integers.

    Raises:
        SettingsError: anything else.
    """
    if text is None:
        return None
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"--crop {text!r} is not X,Y,W,H", "e.g. --crop 40,0,512,512") from None
    if min(x, y) < 0 or min(width, height) < 1:
        raise SettingsError(f"--crop {text!r} is empty or outside", "e.g. --crop 40,0,512,512")
    return x, y, width, height
