"""A discriminative head trained with synthetic defects, compared: `make synthetic`.

Trains one row of tools/results/models.toml, freezes it, and trains a small U-Net on (image,
reconstruction) to find defects that were pasted into good pictures, as DRAEM does (Zavrtanik et
al., "DRAEM - A discriminatively trained reconstruction embedding for surface anomaly detection",
ICCV 2021). Then the test set is judged by the head and by the maps of `tools.maps`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from metal_edge.cli.console import say_result
from metal_edge.errors import SettingsError
from metal_edge.files import write_text
from metal_edge.models.base import AnomalyModel
from metal_edge.models.smoothing import Smoothing, smoothing_matrix
from metal_edge.training.run import load_plan, plan_run, prepare_model
from tools.maps import Row, Trial, figures_of, judge, load_trial, render, train
from tools.results.catalogue import Catalogue
from tools.results.command import run_command
from tools.results.fit import HELD_OUT, Hooks
from tools.results.run import hooks, machine
from tools.results.sets import discover, load_checked

HELP = """Train a head on synthetic defects beside a pixel model, and compare its map.

Example: python -m tools.synthetic ../shared/data/toothbrush --minutes 4 --head-minutes 4
"""

_BATCH = 8
_RATE = 1e-3
_MOST_DEFECTS = 3


class Fill(StrEnum):
    """What synthetic defects show."""

    FLAT = "flat"
    TEXTURE = "texture"  # of another good picture, turned or mirrored, in other colours


def blob(size: int, noise: np.random.Generator) -> NDArray[np.bool_]:
    """One irregular area, [size, size]: a random ellipse with a ragged edge, up to a third wide."""
    grain = noise.normal(size=(size, size)).astype(np.float32)
    smooth = np.asarray(cv2.GaussianBlur(grain, (0, 0), size / 32), np.float32)
    rough = smooth / max(float(np.abs(smooth).max()), 1e-6)
    rows, columns = np.indices((size, size), dtype=np.float32)
    row, column = noise.uniform(0, size, 2)
    tall, wide = noise.uniform(size / 40, size / 6, 2)
    distance = np.hypot((rows - row) / tall, (columns - column) / wide)
    return np.asarray(distance + 0.7 * rough < 1.0)


def damaged(
    image: NDArray[np.uint8], other: NDArray[np.uint8], fill: Fill, noise: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A copy with one to three defects, and where they are.

    Args:
        image: uint8 [S, S, 3], a good picture.
        other: another one, the texture of the defects.
        fill: what they show.
    """
    size = image.shape[0]
    mask = np.zeros((size, size), np.bool_)
    for _ in range(int(noise.integers(1, _MOST_DEFECTS + 1))):
        mask |= blob(size, noise)
    if fill is Fill.FLAT:
        content = np.broadcast_to(noise.integers(0, 256, 3).astype(np.float64), image.shape)
    else:
        turned = np.rot90(other, int(noise.integers(4)))[:, :: int(noise.choice([1, -1]))]
        content = np.roll(turned, tuple(noise.integers(0, size, 2)), axis=(0, 1))
        content = content * noise.uniform(0.6, 1.4, 3) + noise.uniform(-40, 40, 3)
    share = noise.uniform(0.3, 1.0)  # some are faint
    mixed = image + (content - image.astype(np.float64)) * share * mask[..., None]
    return mixed.clip(0, 255).astype(np.uint8), mask


class Head(nn.Module):
    """A U-Net of three scales on (image, reconstruction), [B, 6, S, S] -> logits [B, S, S]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        wide, widest = 2 * width, 4 * width
        self.down = nn.ModuleList([_layers(6, width), _layers(width, wide), _layers(wide, widest)])
        self.up = nn.ModuleList([_layers(widest + wide, wide), _layers(wide + width, width)])
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `this pixel is defective`."""
        fine = self.down[0](x)
        middle = self.down[1](F.max_pool2d(fine, 2))
        coarse = self.down[2](F.max_pool2d(middle, 2))
        middle = self.up[0](torch.cat([F.interpolate(coarse, scale_factor=2), middle], dim=1))
        fine = self.up[1](torch.cat([F.interpolate(middle, scale_factor=2), fine], dim=1))
        return self.out(fine)[:, 0]  # type: ignore[no-any-return]


def _layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(4, outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


def pairs_of(model: AnomalyModel, images: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] -> (image, reconstruction) side by side, [B, 6, S, S]."""
    with torch.no_grad():
        target = model.target(images)
        return torch.cat([target, model(target)], dim=1)


def train_head(
    model: AnomalyModel, images: Tensor, fill: Fill, world: Hooks, *, minutes: float, seed: int
) -> tuple[Head, int]:
    """The head after so many minutes, and its steps.

    Args:
        model: trained and in eval mode; stays as it is.
        images: uint8 [N, S, S, 3], good.
    """
    torch.manual_seed(seed)
    noise, head = np.random.default_rng(seed), Head()
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=1e-4)
    pictures, begun, steps = images.numpy(), world.seconds(), 0
    with world.progress(f"training the head, {fill}") as advance:
        while (done := (world.seconds() - begun) / (60 * minutes)) < 1:
            if world.interrupted():
                raise KeyboardInterrupt
            chosen = noise.integers(len(pictures), size=(_BATCH, 2))
            made = [damaged(pictures[a], pictures[b], fill, noise) for a, b in chosen]
            x = pairs_of(model, torch.from_numpy(np.stack([picture for picture, _ in made])))
            wanted = torch.from_numpy(np.stack([mask for _, mask in made])).float()
            for group in optimizer.param_groups:
                group["lr"] = _RATE * max(0.02, 1 - done)
            loss = F.binary_cross_entropy_with_logits(head(x), wanted, pos_weight=torch.tensor(5.0))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
            advance(round(1000 * done), 1000, f"step {steps}  loss {loss.item():.4f}")
    return head.eval(), steps


def judge_head(head: Head, model: AnomalyModel, trial: Trial, row: Row) -> Row:
    """The head's map, smoothed as the model's; `row` gives step, minutes and name."""
    config = model.config
    smooth = Smoothing(smoothing_matrix(config.image_size, config.blur_sigma))
    with torch.inference_mode():
        maps = torch.cat(
            [head(pairs_of(model, piece)).sigmoid() for piece in torch.split(trial.test, _BATCH)]
        )
        return Row(row.step, row.minutes, row.map, figures_of(smooth(maps), trial))


def synthetic(  # noqa: PLR0917  (the command's options)
    data: Annotated[Path, typer.Argument(help="One set in MVTec layout.")],
    model: Annotated[str, typer.Option(help="A row of tools/results/models.toml.")] = "metal-paper",
    minutes: Annotated[float | None, typer.Option(min=0.01, help="For the model.")] = None,
    head_minutes: Annotated[float, typer.Option(min=0.01, help="For each head.")] = 4.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path, typer.Option(help="Tables.")] = Path("build/synthetic"),
) -> None:
    """See HELP."""
    torch.set_num_threads(threads)
    found = discover(data)
    if len(found) != 1:
        raise SettingsError(f"{data} holds several sets", f"name one of {', '.join(found)}")
    ((name, root),) = found.items()
    variant = Catalogue().variant(model, minutes)
    if variant.network is None or variant.network.kind != "metal":  # type: ignore[attr-defined]
        raise SettingsError(f"{model} does not reconstruct pixels", "choose metal-paper")
    training = variant.training.model_copy(update={"seed": seed})
    with hooks() as world:
        plan = plan_run(root, variant.network, training, allow_mixed_sizes=True, held_out=HELD_OUT)  # type: ignore[arg-type]
        with world.progress("reading images") as advance:
            images = load_plan(plan, world.counted(advance))
        with world.progress("running the frozen part") as advance:
            prepared = prepare_model(plan, images, world.counted(advance))
        trial = load_trial(load_checked(root), plan, images)
        end = train(prepared, len(trial.train), training, world, lambda _: None)
        network = prepared.model.eval()
        rows = judge(network, trial, end.step, end.elapsed_s / 60)
        for fill in Fill:
            head, steps = train_head(
                network, trial.train, fill, world, minutes=head_minutes, seed=seed
            )
            spent = end.elapsed_s / 60 + head_minutes
            rows.append(judge_head(head, network, trial, Row(steps, spent, f"head, {fill}", {})))
        when = world.utc().isoformat(timespec="seconds")
    facts = (
        f"{model} and heads on {name}, seed {seed}; {machine()}, threads: {threads}, {when[:10]}."
        " Pixel figures at the model's input size."
    )
    text = render(rows, facts)
    write_text(out / f"{name}-{model}-seed{seed}.md", text)
    content = json.dumps([asdict(row) for row in rows], indent=1)
    write_text(out / f"{name}-{model}-seed{seed}.json", content + "\n")
    say_result(text)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(synthetic, "python -m tools.synthetic", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
