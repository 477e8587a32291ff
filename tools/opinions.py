"""What each opinion of `metal-features` is worth, alone and together: `make opinions`.

Trains the default network once per radius and judges the test set by every opinion and by their
products: context (each radius, and all radii together), students, memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from metal_edge.cli.console import say, say_result
from metal_edge.errors import SettingsError
from metal_edge.files import write_text
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.models.smoothing import Smoothing
from metal_edge.training.run import load_plan, plan_run, prepare_model
from tools.maps import Row, Trial, figures_of, load_trial, render, train
from tools.results.catalogue import Catalogue
from tools.results.command import run_command
from tools.results.fit import HELD_OUT, Hooks
from tools.results.run import hooks, machine
from tools.results.sets import discover, load_checked

HELP = """Train metal-features and compare its opinions, alone and multiplied.

Example: python -m tools.opinions ../shared/data/toothbrush --radii 1,4 --minutes 4
"""

_CHUNK = 8


def products(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every opinion, and those that are not of another radius multiplied.

    Args:
        logs: logarithms of maps, [N, g, g], by name; names of contexts start with `context`.

    Returns:
        Geometric means by name, [N, g, g].
    """
    maps = {name: value.exp() for name, value in logs.items()}
    contexts = [name for name in logs if name.startswith("context")]
    if len(contexts) > 1:
        maps["contexts together"] = torch.stack([logs[name] for name in contexts]).mean(dim=0).exp()
    first, rest = contexts[0], [name for name in logs if name not in contexts]
    for one in rest:
        maps[f"{first} x {one}"] = ((logs[first] + logs[one]) / 2).exp()
    if len(rest) > 1:
        maps[" x ".join(rest)] = torch.stack([logs[name] for name in rest]).mean(dim=0).exp()
    return maps


def opinions_of(model: MetalFeatures, images: Tensor) -> dict[str, Tensor]:
    """Logarithms of each kind's geometric mean, in units of good parts, [N, g, g] by kind.

    Args:
        images: uint8 [N, S, S, 3].
    """
    counts = {
        f"context, radius {model.config.radius}": len(model.judged),
        "students": len(model.links),
        "memory": len(model.memories),
    }
    grid, pieces = model.config.grid, []
    with torch.inference_mode():
        for piece in torch.split(images, _CHUNK):
            target = model.target(model.precompute(piece))
            pieces.append((model.errors(model(target), target) / model.usual_error + 0.1).log())
    logs = torch.split(torch.cat(pieces), list(counts.values()), dim=-1)
    return {
        name: value.mean(dim=-1).reshape(-1, grid, grid)
        for name, value in zip(counts, logs, strict=True)
        if value.shape[-1]
    }


def fit_at(
    radius: int, root: Path, world: Hooks, *, first: bool, minutes: float | None, seed: int
) -> tuple[MetalFeatures, Trial]:
    """The default network at `radius`, trained; only its context unless it is the `first`."""
    variant = Catalogue().variant("metal-features", minutes)
    changes = {"radius": radius} | ({} if first else {"students": False, "memory": 0})
    config = MetalFeaturesConfig.model_validate(
        (variant.network.model_dump() if variant.network else {}) | changes
    )
    training = variant.training.model_copy(update={"seed": seed})
    plan = plan_run(root, config, training, allow_mixed_sizes=True, held_out=HELD_OUT)
    with world.progress("reading images") as advance:
        images = load_plan(plan, world.counted(advance))
    with world.progress("running the frozen part") as advance:
        prepared = prepare_model(plan, images, world.counted(advance))
    trial = load_trial(load_checked(root), plan, images)
    train(prepared, len(trial.train), training, world, lambda _: None)
    model = prepared.model
    model.fit_errors(prepared.stored)
    if not isinstance(model, MetalFeatures):
        raise SettingsError("the row metal-features is of another kind", "correct models.toml")
    return model.eval(), trial


def table(models: Sequence[MetalFeatures], trial: Trial, minutes: float) -> list[Row]:
    """Figures of all opinions and products.

    Args:
        models: one per radius; the first has students and memory.
    """
    logs: dict[str, Tensor] = {}
    for model in models:
        logs = opinions_of(model, trial.test) | logs
    config = models[0].config
    smooth = Smoothing(config.filtering(), config.grid)
    maps = products(dict(sorted(logs.items())))
    maps["all (the model)"] = _whole(models[0], trial.test)
    return [Row(0, minutes, name, figures_of(smooth(value), trial)) for name, value in maps.items()]


def _whole(model: MetalFeatures, images: Tensor) -> Tensor:
    with torch.inference_mode():
        pieces = []
        for piece in torch.split(images, _CHUNK):
            target = model.target(model.precompute(piece))
            pieces.append(model.error_map(model(target), target))
    return torch.cat(pieces)


def opinions(  # noqa: PLR0917  (the command's options)
    data: Annotated[Path, typer.Argument(help="One set in MVTec layout.")],
    radii: Annotated[str, typer.Option(help="Hidden neighbourhoods, tokens.")] = "1,4",
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Budget per network.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path, typer.Option(help="Tables.")] = Path("build/opinions"),
) -> None:
    """See HELP."""
    torch.set_num_threads(threads)
    try:
        wanted = [int(radius) for radius in radii.split(",")]
    except ValueError as error:
        raise SettingsError(f"--radii {radii} is no list of numbers", "e.g. 1,4") from error
    found = discover(data)
    if len(found) != 1:
        raise SettingsError(f"{data} holds several sets", f"name one of {', '.join(found)}")
    ((name, root),) = found.items()
    with hooks() as world:
        begun = world.seconds()
        fits = [
            fit_at(radius, root, world, first=index == 0, minutes=minutes, seed=seed)
            for index, radius in enumerate(wanted)
        ]
        rows = table([model for model, _ in fits], fits[0][1], (world.seconds() - begun) / 60)
        when = world.utc().isoformat(timespec="seconds")
    facts = (
        f"Opinions of metal-features on {name}, seed {seed}; {machine()}, threads: {threads},"
        f" {when[:10]}. Pixel figures at the model's input size."
    )
    rows = [replace(row, minutes=round(row.minutes, 1)) for row in rows]
    text = render(rows, facts)
    write_text(out / f"{name}-seed{seed}.md", text)
    content = json.dumps([asdict(row) for row in rows], indent=1)
    write_text(out / f"{name}-seed{seed}.json", content + "\n")
    say_result(text)
    say(f"{out / name}-seed{seed}.md")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(opinions, "python -m tools.opinions", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
