"""How much of a patch its own reconstruction gives away: `python -m tools.leak`.

Tiny MeTAL networks learn to rebuild images of i.i.d. noise. No patch of such an image says
anything about another, so whatever a trained network rebuilds of a patch it has from that very
patch. The figure is R^2 on images that were never trained on: 1 when everything leaks, 0 (or a
little less) when nothing does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from metal_edge.cli.console import say_result
from metal_edge.models.attention import MaskRule
from metal_edge.models.metal import Metal, MetalConfig
from metal_edge.models.shapes import Shape
from tools.results.command import run_command

HELP = """Print what each mask of MeTAL leaks: R^2 of noise patches from themselves.

Example: python -m tools.leak --steps 400
"""

# Small enough for seconds on one core; 48 values per patch fit through the embedding of 48.
SMALL: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "embedding": 48,
    "square_hidden": 128,
    "stripe_hidden": 128,
    "decoder_hidden": (128,),
}
SHAPES = ((Shape.SQUARES,), (Shape.SQUARES, Shape.ROWS))
BATCH = 32
HELD_OUT = 256


def held_out_r2(config: MetalConfig, *, steps: int, seed: int) -> float:
    """Trains on fresh noise and gives R^2 on other noise.

    Args:
        config: the network.
        steps: of AdamW, each on 32 new images.
        seed: decides weights and images.

    Returns:
        1 - squared error / variance, over all pixels of 256 held-out images.
    """
    torch.manual_seed(seed)  # modules draw their weights from the global generator only
    model = Metal(config)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(steps):
        images = _noise(BATCH, config.image_size, generator)
        optimizer.zero_grad()
        (model(images) - images).square().mean().backward()
        optimizer.step()
        rate.step()
    images = _noise(HELD_OUT, config.image_size, generator)
    with torch.inference_mode():
        error = (model.eval()(images) - images).square().sum()
    return 1.0 - float(error / (images - images.mean()).square().sum())


def _noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 3, size, size], uniform in [0, 1)."""
    return torch.rand(count, 3, size, size, generator=generator)


def small_config(mask: MaskRule, shapes: Sequence[Shape], blocks: int) -> MetalConfig:
    """A tiny network with that mask."""
    return MetalConfig(mask=mask, shapes=tuple(shapes), blocks=blocks, **SMALL)


def leak(
    steps: Annotated[int, typer.Option(min=1, help="Training steps per network.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Weights and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="For training.")] = 1,
) -> None:
    """See HELP."""
    torch.set_num_threads(threads)
    say_result("| mask | shapes | 1 block | 2 blocks |\n| --- | --- | --- | --- |")
    for shapes in SHAPES:
        for mask in MaskRule:
            values = [
                held_out_r2(small_config(mask, shapes, blocks), steps=steps, seed=seed)
                for blocks in (1, 2)
            ]
            cells = " | ".join(f"{value:.3f}" for value in values)
            say_result(f"| {mask} | {' + '.join(shapes)} | {cells} |")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(leak, "python -m tools.leak", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
