"""Which error map and which image score a pixel reconstruction wants: `make maps`.

Trains one row of tools/results/models.toml and, at steps that double, judges the test set by
every map (the paper's squared error and the list of candidates) and every score. It only
compares: test images decide nothing in training, and what is chosen from this table must show
on more than one data set. Unlike the results page, pixel figures are taken at the model's
input size.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from torch import Tensor

from metal_edge.cli.console import say, say_result
from metal_edge.data import Dataset, load_images
from metal_edge.errors import SettingsError
from metal_edge.evaluation.metrics import PixelCurves, image_auroc
from metal_edge.files import write_text
from metal_edge.imaging import image_info, read_mask
from metal_edge.models.attention import MaskRule
from metal_edge.models.base import AnomalyModel
from metal_edge.models.error_maps import GradientError
from metal_edge.models.losses import C1, C2
from metal_edge.models.metal import MetalConfig
from metal_edge.models.smoothing import Smoothing, smoothing_matrix, valid_matrix
from metal_edge.training.config import TrainConfig
from metal_edge.training.loop import Progress, Trainer
from metal_edge.training.run import Plan, Prepared, load_plan, plan_run, prepare_model
from metal_edge.training.state import Position
from tools.results.catalogue import Catalogue
from tools.results.command import run_command
from tools.results.fit import HELD_OUT, Hooks
from tools.results.run import hooks, machine
from tools.results.sets import discover, load_checked

HELP = """Train a pixel model and compare error maps and image scores as it learns.

Example: python -m tools.maps ../shared/data/head_ct --model metal-paper --minutes 10
         python -m tools.maps ../shared/data/head_ct --mask zeroleak --radius 1
"""

FIRST_STEP = 125
_CHUNK = 16
SCORES: Mapping[str, float] = {"maximum": 0.0, "highest 2 %": 0.02, "mean": 1.0}

ErrorMap = Callable[[Tensor, Tensor], Tensor]


def squared(got: Tensor, wanted: Tensor) -> Tensor:
    """MeTAL's own: squared error summed over R, G, B, [B, 3, S, S] -> [B, S, S]."""
    return (got - wanted).square().sum(dim=1)


def absolute(got: Tensor, wanted: Tensor) -> Tensor:
    """Absolute error summed over R, G, B."""
    return (got - wanted).abs().sum(dim=1)


def dissimilarity(got: Tensor, wanted: Tensor) -> Tensor:
    """1 - SSIM (window 11, sigma 1.5), mean over R, G, B, the border repeated."""
    size = got.shape[-1]
    matrix = valid_matrix(size, 1.5, 11)

    def blur(x: Tensor) -> Tensor:
        return matrix @ x @ matrix.T

    a, b = blur(got), blur(wanted)
    covariance = blur(got * wanted) - a * b
    spread = blur(got * got) - a * a + blur(wanted * wanted) - b * b
    ssim = (2 * a * b + C1) / (a * a + b * b + C1) * (2 * covariance + C2) / (spread + C2)
    return F.pad(1 - ssim.mean(dim=1), (5, 5, 5, 5), mode="replicate")


def gradients(got: Tensor, wanted: Tensor) -> Tensor:
    """1 - gradient magnitude similarity."""
    return _gradient_error(got.shape[-1])(got, wanted)  # type: ignore[no-any-return]


@cache
def _gradient_error(size: int) -> GradientError:
    return GradientError(size)


MAPS: Mapping[str, ErrorMap] = {
    "squared": squared,
    "absolute": absolute,
    "1 - SSIM": dissimilarity,
    "gradients": gradients,
}
CORRECTIONS = ("", "minus usual", "over usual")


@dataclass(frozen=True)
class Row:
    """One map at one step: figures by name, 0..1."""

    step: int
    minutes: float
    map: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """What is judged.

    Attributes:
        train, test: uint8 [N, S, S, 3].
        anomalous: bool [N] of the test images.
        truths: bool [S, S] per test image; None where the set has no mask for it.
    """

    train: Tensor
    test: Tensor
    anomalous: NDArray[np.bool_]
    truths: Sequence[NDArray[np.bool_] | None]


def corrected(errors: Tensor, usual: Tensor, how: str) -> Tensor:
    """`errors` [N, S, S] against what good parts show at each place, `usual` [S, S]."""
    if how == "minus usual":
        return errors - usual
    if how == "over usual":
        return errors / (usual + 0.2 * usual.mean())
    return errors


def score_of(maps: Tensor, share: float) -> NDArray[np.float32]:
    """Mean of the highest `share` of every map's pixels (0: the maximum), [N]."""
    pixels = maps.flatten(1)
    count = max(1, round(share * pixels.shape[1]))
    return pixels.topk(count, dim=1).values.mean(dim=1).numpy()


def judge(model: AnomalyModel, trial: Trial, step: int, minutes: float) -> list[Row]:
    """Every map and score of the network as it stands."""
    was_training = model.training
    model.eval()
    config = model.config
    smooth = Smoothing(smoothing_matrix(config.image_size, config.blur_sigma))
    rows = []
    with torch.inference_mode():
        good, seen = _reconstruct(model, trial.train), _reconstruct(model, trial.test)
        for name, error in MAPS.items():
            usual = smooth(_errors(error, good).mean(dim=0))
            errors = smooth(_errors(error, seen))
            for how in CORRECTIONS:
                figures = figures_of(corrected(errors, usual, how), trial)
                rows.append(Row(step, minutes, f"{name} {how}".strip(), figures))
    model.train(was_training)
    return rows


def _reconstruct(model: AnomalyModel, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    pairs = []
    for piece in torch.split(images, _CHUNK):
        wanted = model.target(piece)
        pairs.append((model(wanted), wanted))
    return pairs


def _errors(error: ErrorMap, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([error(got, wanted) for got, wanted in pairs])


def figures_of(maps: Tensor, trial: Trial) -> dict[str, float]:
    """Image AUROC by score; pixel AUROC, whole and up to FPR 0.3, where there are masks.

    Args:
        maps: smoothed, [N, S, S].
    """
    figures = {
        f"image, {name}": image_auroc(score_of(maps, share), trial.anomalous)
        for name, share in SCORES.items()
    }
    if any(truth is not None and truth.any() for truth in trial.truths):
        curves = PixelCurves()
        for values, truth in zip(maps.numpy(), trial.truths, strict=True):
            if truth is not None:
                curves.update(values, truth)
        figures["pixel"] = curves.auroc()
        figures["normalised, FPR ≤ .3"] = curves.auroc_up_to(0.3)
    return figures


def load_trial(dataset: Dataset, plan: Plan, images: NDArray[np.uint8]) -> Trial:
    """Reads the test set at the model's input size; masks keep every pixel of theirs that half
    of a model pixel shows."""
    size = plan.record.preprocess
    samples = dataset.test
    test = load_images(samples, size.width, size.height, size.crop)
    truths: list[NDArray[np.bool_] | None] = []
    for sample in samples:
        if sample.good:
            truths.append(np.zeros((size.height, size.width), np.bool_))
        elif sample.mask is None:
            truths.append(None)
        else:
            truths.append(_small_mask(sample.path, sample.mask, size.width, size.height))
    anomalous = np.array([not sample.good for sample in samples])
    train = torch.from_numpy(images[: len(plan.split.train)])
    return Trial(train, torch.from_numpy(test), anomalous, truths)


def _small_mask(image: Path, mask: Path, width: int, height: int) -> NDArray[np.bool_]:
    info = image_info(image)
    whole = read_mask(mask, info.height, info.width).astype(np.float32)
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA) >= 0.5


def follow(prepared: Prepared, trial: Trial, training: TrainConfig, world: Hooks) -> list[Row]:
    """Trains and judges at steps FIRST_STEP, 2 FIRST_STEP, ... and at the end."""
    rows: list[Row] = []

    def on_step(p: Progress) -> None:
        doubled = p.step / FIRST_STEP
        if doubled >= 1 and doubled.is_integer() and int(doubled).bit_count() == 1:
            rows.extend(judge(prepared.model, trial, p.step, p.elapsed_s / 60))

    end = train(prepared, len(trial.train), training, world, on_step)
    rows.extend(judge(prepared.model, trial, end.step, end.elapsed_s / 60))
    return rows


def train(
    prepared: Prepared,
    boundary: int,
    training: TrainConfig,
    world: Hooks,
    on_step: Callable[[Progress], None],
) -> Position:
    """Trains to the end, leaving nothing on disk; the best weights stay in the model.

    Args:
        boundary: so many of the stored images train, the others watch the loss.

    Raises:
        KeyboardInterrupt: the person stopped it.
    """
    with tempfile.TemporaryDirectory() as folder, world.progress("training") as advance:
        trainer = Trainer(
            prepared.model,
            prepared.stored[:boundary],
            prepared.stored[boundary:],
            training.model_copy(update={"save_every_s": 3600.0}),
            state_file=Path(folder) / "state.safetensors",
            fingerprint="trial",
            seconds=world.seconds,
        )

        def on_progress(p: Progress) -> None:
            advance(round(1000 * p.fraction), 1000, f"step {p.step}  loss {p.loss:.4f}")
            on_step(p)

        trainer.run(on_progress, world.interrupted)
    if world.interrupted():
        raise KeyboardInterrupt
    return trainer.position


def render(rows: Sequence[Row], facts: str) -> str:
    """A Markdown table, one line per step and map."""
    names = list(rows[0].figures)
    lines = [["step", "minutes", "map", *names], ["---"] * (3 + len(names))]
    for row in rows:
        figures = [f"{row.figures[name]:.3f}" for name in names]
        lines.append([str(row.step), f"{row.minutes:.1f}", row.map, *figures])
    return f"{facts}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def maps(  # noqa: PLR0917  (the command's options)
    data: Annotated[Path, typer.Argument(help="One set in MVTec layout.")],
    model: Annotated[str, typer.Option(help="A row of tools/results/models.toml.")] = "metal-paper",
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Training budget.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path, typer.Option(help="Tables.")] = Path("build/maps"),
    batch: Annotated[int | None, typer.Option(min=1, help="In place of the recipe's.")] = None,
    rate: Annotated[float | None, typer.Option(min=1e-6, help="In place of the recipe's.")] = None,
    mask: Annotated[MaskRule | None, typer.Option(help="In place of the model's.")] = None,
    radius: Annotated[int, typer.Option(min=0, help="Hidden squares; with --mask zeroleak.")] = 0,
) -> None:
    """See HELP."""
    torch.set_num_threads(threads)
    found = discover(data)
    if len(found) != 1:
        raise SettingsError(f"{data} holds several sets", f"name one of {', '.join(found)}")
    ((name, root),) = found.items()
    dataset, variant = load_checked(root), Catalogue().variant(model, minutes)
    changes = {"seed": seed, "batch_size": batch, "learning_rate": rate}
    training = variant.training.model_copy(
        update={key: value for key, value in changes.items() if value is not None}
    )
    if variant.network is None or variant.network.kind != "metal":  # type: ignore[attr-defined]
        raise SettingsError(f"{model} does not reconstruct pixels", "choose metal-paper")
    network = cast(MetalConfig, variant.network)
    if mask is not None:
        fields = network.model_dump() | {"mask": mask, "radius": radius}
        network = MetalConfig.model_validate(fields)
        model = f"{model}-{mask}{radius}"
    with hooks() as world:
        plan = plan_run(root, network, training, allow_mixed_sizes=True, held_out=HELD_OUT)
        with world.progress("reading images") as advance:
            images = load_plan(plan, world.counted(advance))
        with world.progress("running the frozen part") as advance:
            prepared = prepare_model(plan, images, world.counted(advance))
        rows = follow(prepared, load_trial(dataset, plan, images), training, world)
        when = world.utc().isoformat(timespec="seconds")
    facts = (
        f"{model} on {name}, seed {seed}, batch {training.batch_size}, rate"
        f" {training.learning_rate:g}; {machine()}, threads: {threads}, {when[:10]}."
    )
    text = render(rows, facts)
    stem = f"{name}-{model}-b{training.batch_size}-r{training.learning_rate:g}-seed{seed}"
    write_text(out / f"{stem}.md", text)
    content = [asdict(row) for row in rows]
    write_text(out / f"{stem}.json", json.dumps(content, indent=1) + "\n")
    say_result(text)
    say(f"{out / stem}.md")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(maps, "python -m tools.maps", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
