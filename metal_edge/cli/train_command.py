"""`metal-edge train`: its options and their help; the work is in `cli.train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metal_edge.cli.choices import (
    AcceleratorName,
    ErrorName,
    MaskName,
    MixedSizes,
    ModelName,
    PresetName,
    RecipeName,
    TrainPrecisionName,
)

EXAMPLE = "Example: metal-edge train ./bottle -o runs/bottle --max-minutes 5"


def train(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET", help="folder of good images, or MVTec layout (train/good, test/...)"
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the run")],
    model: Annotated[
        ModelName,
        typer.Option(
            help="metal: the paper's network on pixels; metal-features: on ImageNet features;"
            " l2bt: students between depths of a backbone; anovit: ViT encoder and decoder"
        ),
    ] = ModelName.METAL_FEATURES,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="metal-features, l2bt: efficientnet-lite0 (default) or timm:NAME, a ViT; anovit:"
            " scratch (default) or timm:NAME, e.g. timm:vit_base_patch16_384",
        ),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            "--backbone-weights",
            metavar="FILE.safetensors",
            help="timm:NAME: its weights, where the model hub cannot be reached",
        ),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="metal-features, l2bt: depths, shallow to deep: blocks of a ViT, default 7,11;"
            " or stages, default stride4+stride8,stride16-early+stride16,stride32",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=16,
            max=4096,
            help="not for metal: side of the network's input in pixels; default: the model's",
        ),
    ] = None,
    preset: Annotated[
        PresetName,
        typer.Option(
            help="metal: products 1 block, textures 2 (paper, Table 2); metal-features: textures"
            " for surfaces without a fixed place, fine for sharp outlines of small defects, fast"
            " for a few milliseconds per frame"
        ),
    ] = PresetName.PRODUCTS,
    mask: Annotated[
        MaskName | None,
        typer.Option(
            help="metal: what hides a patch from its own reconstruction; default zero, the paper's,"
            " which leaks; zeroleak does not"
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="metal: any of squares,rows,cols; default: squares,rows (the paper)"
        ),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(min=1, max=8, help="metal: depth; default: the preset's")
    ] = None,
    radius: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="squares or tokens around a patch that are hidden with it; metal with --mask"
            " zeroleak: default 0; metal-features: default 1",
        ),
    ] = None,
    error: Annotated[
        ErrorName | None,
        typer.Option(
            help="metal: what the map shows; default squared, the paper's; absolute, which the"
            " largest deviations do not rule; gradients: edges that do not fit"
        ),
    ] = None,
    weighting: Annotated[
        bool,
        typer.Option(
            "--weighting",
            help="divide the map by the error of good parts at each place: for parts that always"
            " lie in the same place",
        ),
    ] = False,
    held_out: Annotated[
        float, typer.Option(min=0.01, max=0.8, help="share of good images kept for the threshold")
    ] = 0.15,
    recipe: Annotated[
        RecipeName, typer.Option(help="fast: falling rate in a time budget; paper: constant rate")
    ] = RecipeName.FAST,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.05, help="training time; fast: 5 (metal-features, l2bt) or 10"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="at most so many epochs")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="images per step; default: the recipe's")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=1e-8, max=1.0, help="highest step size; default: the recipe's"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="decides split, weights and order")] = 0,
    crop: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="part of the frame to inspect, in pixels")
    ] = None,
    mixed_sizes: Annotated[
        MixedSizes, typer.Option(help="what to do with images of different sizes")
    ] = MixedSizes.REFUSE,
    train_precision: Annotated[
        TrainPrecisionName,
        typer.Option(help="arithmetic of training; auto: bf16 where native; fp16: GPU only"),
    ] = TrainPrecisionName.AUTO,
    accelerator: Annotated[
        AcceleratorName, typer.Option(help="what trains; auto: the GPU where there is one")
    ] = AcceleratorName.AUTO,
    devices: Annotated[
        int,
        typer.Option(min=1, max=64, help="GPUs, or processes on the CPU, that share each batch"),
    ] = 1,
    save_every: Annotated[
        float | None,
        typer.Option(
            "--save-every",
            min=0,
            help="seconds between saved states, default 30: what a crash costs",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="discard the run that is there, and start over")
    ] = False,
) -> None:
    """Train a model on good parts. Stopped by Ctrl-C or a crash? The same command goes on."""
    from metal_edge.cli.train import TrainOptions, run_train

    run_train(
        dataset,
        out,
        TrainOptions(
            model=model.value,
            backbone=backbone,
            backbone_weights=backbone_weights,
            levels=levels,
            image_size=image_size,
            preset=preset.value,
            mask=None if mask is None else mask.value,
            shapes=shapes,
            blocks=blocks,
            radius=radius,
            error=None if error is None else error.value,
            weighting=weighting,
            held_out=held_out,
            recipe=recipe.value,
            max_minutes=max_minutes,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            crop=crop,
            mixed_sizes=mixed_sizes is MixedSizes.RESIZE,
            train_precision=train_precision.value,
            accelerator=accelerator.value,
            devices=devices,
            save_every_s=save_every,
            fresh=fresh,
        ),
    )
