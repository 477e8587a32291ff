"""The paper's ablation (De Nardin et al. 2022, Table 3) on any data set: `make ablation`.

Six columns: squares without a mask, then masked squares, each pair of shapes, and all three. The
figure is Table 3's, pixel AUROC up to FPR 0.3 divided by 0.3, or the image AUROC (Table 5) where
a set has no masks. Cells are those of the results page: finished ones are kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import torch
import typer
from pydantic import ValidationError

from metal_edge.cli.console import say, say_result
from metal_edge.errors import ExitCode, SettingsError
from metal_edge.files import write_text
from metal_edge.models.metal import MetalConfig
from tools.results.campaign import run_cells
from tools.results.catalogue import Catalogue, Variant, published
from tools.results.cells import Cell
from tools.results.command import run_command
from tools.results.run import hooks, machine
from tools.results.sets import digest, discover, load_checked

HELP = """Train MeTAL with every combination of patch shapes and write Table 3's form.

Finished cells are kept: the same command goes on where it was stopped.

Example: python -m tools.ablation ../shared/data/toothbrush --seeds 3 --minutes 10 --mask zero
"""

PAPER_ROW = "paper"
# Title as in Table 3, shapes, masked.
COLUMNS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("Only Squares (No Mask)", ("squares",), False),
    ("Only Squares (Masked)", ("squares",), True),
    ("Squares + Rows", ("squares", "rows"), True),
    ("Squares + Cols", ("squares", "cols"), True),
    ("Rows + Cols", ("rows", "cols"), True),
    ("Squares + Rows + Cols", ("squares", "rows", "cols"), True),
)
# De Nardin et al. 2022, Table 5: image AUROC; the other columns are not in the paper.
HEAD_CT = {"Only Squares (Masked)": "0.814 ± 0.012", "Squares + Rows": "0.863 ± 0.040"}


class Mask(StrEnum):
    """Choices of --mask: how the masked columns are masked."""

    OFF = "off"
    ZERO = "zero"
    NEG_INF = "neg_inf"
    ZEROLEAK = "zeroleak"


class Recipe(StrEnum):
    """Choices of --recipe, those of tools/results/models.toml."""

    FAST = "fast"
    PAPER = "paper"


@dataclass(frozen=True)
class Row:
    """One data set: column title -> figures of its seeds, and which figure that is."""

    name: str
    figure: str
    values: Mapping[str, Sequence[float]]


def network_of(shapes: Sequence[str], mask: str, blocks: int) -> MetalConfig:
    """A column's network configuration.

    Raises:
        SettingsError: this version lacks that mask.
    """
    fields = {"kind": "metal", "shapes": list(shapes), "mask": mask, "blocks": blocks}
    try:
        return MetalConfig.model_validate(fields)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise SettingsError(f"no such network ({reason})", "choose another --mask") from error


def cell_text(values: Sequence[float]) -> str:
    """Mean and sample standard deviation over the seeds; `-` without any."""
    if not values:
        return "-"
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def paper_row(name: str, table: Mapping[str, Sequence[float]]) -> dict[str, str] | None:
    """The paper's figures for a set of that name, by column; None where it has none."""
    key = name.lower().replace(" ", "_").replace("-", "_")
    if key in {"head_ct", "headct"}:
        return HEAD_CT
    if key not in table:
        return None
    titles = [title for title, _, _ in COLUMNS]
    return {title: f"{value:.3f}" for title, value in zip(titles, table[key], strict=True)}


def render(rows: Sequence[Row], table: Mapping[str, Sequence[float]], facts: str) -> str:
    """The table, Markdown; the best column of every row in bold, the paper's row below.

    Args:
        rows: ours.
        table: Table 3 by class name.
        facts: how they were made, one line.
    """
    titles = [title for title, _, _ in COLUMNS]
    lines = [["Class", "figure", *titles], ["---"] * (len(titles) + 2)]
    for row in rows:
        texts = [cell_text(row.values.get(title, ())) for title in titles]
        means = [mean(row.values[title]) if row.values.get(title) else -1.0 for title in titles]
        best = means.index(max(means))
        if means[best] >= 0:
            texts[best] = f"**{texts[best]}**"
        lines.append([row.name, row.figure, *texts])
        published = paper_row(row.name, table)
        if published is not None:
            lines.append([f"{row.name}, {PAPER_ROW}", "", *(published.get(t, "") for t in titles)])
    lines += _mean_rows(rows, titles)
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{facts}\n\n{body}\n"


def _mean_rows(rows: Sequence[Row], titles: Sequence[str]) -> list[list[str]]:
    """The mean over sets of each figure that two sets or more have in every column."""
    lines = []
    for figure in dict.fromkeys(row.figure for row in rows):
        whole = [r for r in rows if r.figure == figure and all(r.values.get(t) for t in titles)]
        if len(whole) > 1:
            means = [mean(mean(row.values[title]) for row in whole) for title in titles]
            lines.append([f"Mean of {len(whole)}", figure, *(f"{m:.3f}" for m in means)])
    return lines


def ablation(  # noqa: PLR0917  (the command's options)
    data: Annotated[Path, typer.Argument(help="One set in MVTec layout, or a folder of such.")],
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Seeds 0, 1, ... per column.")] = 3,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Training budget per cell; default: 10, or none.")
    ] = None,
    mask: Annotated[Mask, typer.Option(help="Mask of the masked columns.")] = Mask.ZERO,
    blocks: Annotated[
        int, typer.Option(min=1, max=2, help="1 for products, 2 for textures (Table 2).")
    ] = 1,
    recipe: Annotated[
        Recipe, typer.Option(help="fast: a falling rate in the budget; paper: early stop.")
    ] = Recipe.FAST,
    threads: Annotated[int, typer.Option(min=1, help="For training.")] = 2,
    out: Annotated[Path, typer.Option(help="Cells and tables.")] = Path("build/ablation"),
) -> None:
    """See HELP."""
    cells = _cells(data, mask, blocks, recipe, minutes, seeds=seeds, threads=threads, out=out)
    with hooks() as world:
        summary = run_cells(cells, world, say)
        when = world.utc().isoformat(timespec="seconds")
    rows = _rows(cells)
    budget = f"{minutes:g} min per cell" if minutes else "the recipe's own budget"
    facts = (
        f"Table 3's form: mask {mask}, blocks {blocks}, recipe {recipe}, {budget}, seeds: {seeds}"
        f" (mean ± sample standard deviation); {machine()}, threads: {threads}, {when[:10]}."
    )
    name = f"{data.resolve().name}-{mask}-b{blocks}-{recipe}"
    text = render(rows, published().ablation, facts)
    write_text(out / f"{name}.md", text)
    content = {
        "facts": facts,
        "rows": [{"set": r.name, "figure": r.figure, "values": dict(r.values)} for r in rows],
        "failures": summary.failures,
    }
    write_text(out / f"{name}.json", json.dumps(content, indent=1) + "\n")
    say_result(text)
    say(f"{out / name}.md")
    for failed, reason in summary.failures.items():
        say(f"failed: {failed}: {reason}")
    if summary.failures:
        raise typer.Exit(ExitCode.FAILURE)


def _cells(
    data: Path,
    mask: str,
    blocks: int,
    recipe: str,
    minutes: float | None,
    *,
    seeds: int,
    threads: int,
    out: Path,
) -> list[Cell]:
    torch.set_num_threads(threads)
    changes = {} if recipe == Recipe.PAPER else {"learning_rate": 5e-4, "max_minutes": 10.0}
    training = Catalogue().recipe(recipe, minutes, **changes)
    cells = []
    for name, root in discover(data).items():
        dataset = load_checked(root)
        contents = digest(dataset)
        for title, shapes, masked in COLUMNS:
            rule = mask if masked else Mask.OFF
            network = network_of(shapes, rule, blocks)
            variant = Variant(title, title, network, training, {})
            label = f"{'-'.join(shapes)}-{rule}-b{blocks}-{recipe}"
            for seed in range(seeds):
                folder = out / name / label / f"seed{seed}"
                cells.append(
                    Cell(name, dataset, contents, variant, seed, threads, folder, keep=False)
                )
    return cells


def _rows(cells: Sequence[Cell]) -> list[Row]:
    rows = []
    for name in dict.fromkeys(cell.name for cell in cells):
        mine = [cell for cell in cells if cell.name == name]
        masks = any(sample.mask is not None for sample in mine[0].dataset.test)
        key, figure = (
            ("pixel_auroc_30", "normalised, FPR ≤ .3") if masks else ("image_auroc", "image AUROC")
        )
        values: dict[str, list[float]] = {}
        for cell in mine:
            result = cell.finished()
            value = None if result is None else result.figures.get(key)
            if value is not None:
                values.setdefault(cell.variant.name, []).append(value)
        rows.append(Row(name, figure, values))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(ablation, "python -m tools.ablation", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
