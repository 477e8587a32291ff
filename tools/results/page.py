"""docs/results.md from docs/results/results.json: a pure function, so that a test can compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tools.results.catalogue import Published, PublishedFigure

NOT_RUN = "not run"
FIGURES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_auroc_30": "normalised, FPR ≤ .3",
    "aupro_30": "AUPRO",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Made(_Part):
    """Where the figures come from. `threads` trained; timing always takes one."""

    utc: str
    machine: str
    command: str
    threads: int


class SetInfo(_Part):
    """A data set's counts; `curves` is the ROC picture's name, `galleries` model -> picture."""

    name: str
    train: int
    test_good: int
    test_anomalous: int
    masks: bool
    curves: str | None = None
    galleries: dict[str, str] = {}


class ModelInfo(_Part):
    """A row's name; published figures by set."""

    name: str
    title: str
    published: dict[str, str] = {}


class CellFigures(_Part):
    """One cell as far as the page shows it; `fingerprint` and `finished` (date) are `Cell`'s."""

    dataset: str
    model: str
    seed: int
    fingerprint: str
    finished: str
    figures: dict[str, float | None]
    parameters: int
    macs: int
    training_minutes: float


class Results(_Part):
    """results.json."""

    schema_version: Literal[1] = 1
    made: Made
    seeds: int
    sets: tuple[SetInfo, ...]
    models: tuple[ModelInfo, ...]
    cells: tuple[CellFigures, ...]
    milliseconds: dict[str, dict[str, float]]


def render(results: Results, published: Published) -> str:
    """The whole page, Markdown."""
    parts = [_head(results), _models(results)]
    parts += [_section(results, info) for info in results.sets]
    parts += [_published(published.figures), _METHOD]
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> str:
    made = results.made
    dates = sorted({cell.finished for cell in results.cells})
    when = f" Cells were trained between {dates[0]} and {dates[-1]}." if len(dates) > 1 else ""
    return (
        "# Results\n\n"
        f"Made by `{made.command}` on {made.utc[:10]}; {made.machine}, training with"
        f" {made.threads} thread{'s' if made.threads > 1 else ''}. Median of the seeds (up to"
        f" {results.seeds}), smallest..largest in brackets. `-`: the set has no masks, so there is"
        f" no pixel figure. `{NOT_RUN}`: not trained yet.{when}\n\n"
        "This page is made from `docs/results/results.json`; a test compares."
    )


def _models(results: Results) -> str:
    rows = [(f"`{m.name}`", m.title) for m in results.models]
    return "## Models\n\n" + table(("model", "what it is"), rows)


def _section(results: Results, info: SetInfo) -> str:
    head = (
        "model",
        *FIGURES.values(),
        "parameters",
        "MACs",
        "CPU ms",
        "training min",
        "seeds",
        "published",
    )
    rows = [_row(results, info, model) for model in results.models]
    text = (
        f"## {info.name}\n\n{info.train} good images to train on; {info.test_good} good and"
        f" {info.test_anomalous} anomalous to test"
        f"{'' if info.masks else '; no masks'}.\n\n" + table(head, rows)
    )
    if info.curves:
        text += f"\n\n![ROC curves of {info.name}, first seed](results/{info.curves})"
    for model, picture in info.galleries.items():
        text += f"\n\n### {info.name}: what `{model}` sees\n\n![{model}](results/{picture})"
    return text


def _row(results: Results, info: SetInfo, model: ModelInfo) -> tuple[str, ...]:
    cells = [c for c in results.cells if (c.dataset, c.model) == (info.name, model.name)]
    published = model.published.get(info.name, "")
    if not cells:
        return (f"`{model.name}`", NOT_RUN, *[""] * (len(FIGURES) + 4), published)
    ms = results.milliseconds.get(info.name, {}).get(model.name)
    figures = [spread([c.figures.get(key) for c in cells], "{:.4f}".format) for key in FIGURES]
    return (
        f"`{model.name}`",
        *figures,
        f"{cells[0].parameters / 1e6:.2f} M",
        f"{cells[0].macs / 1e9:.2f} G",
        "-" if ms is None else f"{ms:.1f}",
        spread([c.training_minutes for c in cells], "{:.1f}".format),
        str(len(cells)),
        published,
    )


def spread(values: Sequence[float | None], shown: Callable[[float], str]) -> str:
    """Median, and the range where several values differ; `-` where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    middle, low, high = shown(median(known)), shown(min(known)), shown(max(known))
    return middle if low == high else f"{middle} ({low}..{high})"


def _published(figures: Sequence[PublishedFigure]) -> str:
    head = ("method", "on", *FIGURES.values(), "source", "note")
    rows = []
    for f in figures:
        values = (f.image, f.pixel, f.normalised, f.aupro)
        shown = ["" if v is None else f"{v:.3f}" for v in values]
        rows.append((f.method, f.on, *shown, f.source, f.note))
    return (
        "## Published figures\n\n"
        "Copied from the papers, not measured here. Means over MVTec AD's 15 classes say nothing"
        " about a single set, and our splits of `toothbrush`, `magnetic_tile` and `head_ct` are our"
        " own: read them as the field's level, not as a comparison.\n\n" + table(head, rows)
    )


_METHOD = """## How it was measured

- Every figure comes from the exported FP32 ONNX graph, run by ONNX Runtime on the test images;
  pixel figures at the masks' own resolution, good test images included. AUROC up to FPR 0.3 and
  AUPRO up to FPR 0.3 are divided by 0.3.
- Training images are divided by content: 85 % train, 10 % choose the best epoch, 5 % stay
  unseen and give the threshold that the galleries show. PatchCore, which has nothing to validate,
  fills its bank from the first two parts; so do the memories of `metal-features`.
- MACs of one image from bytes to score: convolutions and matrix products as PyTorch's
  FlopCounterMode counts them, halved.
- CPU ms: ONNX Runtime, FP32, batch 1, one thread; all models of a set take turns in every round,
  the median of the rounds after a warm-up counts.
- Training minutes include reading the images and the frozen backbone's pass over them.
- Pictures of real sets stay out of this repository, their licences do not allow them here.
  `make results DATA=<folder>` writes them to `build/results/<set>/<model>/seed0/report/`."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
