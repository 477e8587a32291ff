"""The report of one evaluation: report.json, gallery.png and report.html in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from metal_edge.data import GOOD
from metal_edge.evaluation.evaluate import (
    EvaluationResult,
    ImageRecord,
    Progress,
    load_view,
    mistakes,
    score_order,
)
from metal_edge.evaluation.gallery import Row, Scale, Section, draw_gallery, make_row
from metal_edge.evaluation.page import figure_text, render_page
from metal_edge.files import write_bytes
from metal_edge.imaging import write_png
from metal_edge.runtime.base import Runner

REPORT, GALLERY, PAGE = "report.json", "gallery.png", "report.html"
WORST = 4  # rows per section of misses, false rejects and unknowns
_MANY_LABELS = 4  # above this, one example per label instead of two
_MAX_LABELS = 24

# title, note, records
Choice = tuple[str, str, list[ImageRecord]]


def write_report(
    out: Path,
    result: EvaluationResult,
    runner: Runner,
    *,
    title: str,
    details: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes the three files; each appears whole or not at all.

    Args:
        out: a folder, made where missing.
        result: from `evaluate` with the same runner; the pictures shown are inferred again.
        title: names model and data.
        details: further facts for the page and the JSON, e.g. the threshold's statement.
        progress: called with (done, total) after each picture.

    Raises:
        OutputError: `out` cannot be written.
        MissingInputError, DataError: a picture vanished or changed since the evaluation.
        UnavailableError: the runner's back end failed.
    """
    facts = dict(details or {})
    content = {"title": title, "details": facts, **result.to_dict()}
    # ASCII: file names need not be UTF-8.
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_bytes(out / REPORT, text.encode("ascii"))
    choices = choose_pictures(result)
    sections = _load(result, choices, runner, progress)
    sheet = draw_gallery(title, _subtitle(result), sections, display_scale(result))
    write_png(out / GALLERY, sheet)
    page = render_page(title, facts, result, (out / GALLERY).read_bytes())
    write_bytes(out / PAGE, page.encode("utf-8", "replace"))  # a name that is no UTF-8 shows as ?


def choose_pictures(result: EvaluationResult) -> list[Choice]:
    """Images of each label, spread over its scores, then the worst of each kind of mistake."""
    names = sorted(result.labels, key=lambda name: (name != GOOD, name))[:_MAX_LABELS]
    each = 2 if len(names) <= _MANY_LABELS else 1
    examples: list[ImageRecord] = []
    for name in names:
        examples += _spread([r for r in result.records if r.sample.label == name], each)
    note = "median score of each label" if each == 1 else "upper and lower half by score"
    choices: list[Choice] = [("Examples", note, examples)]
    for title, records in mistakes(result).items():
        if records:
            shown = records[:WORST]
            choices.append((title, f"worst {len(shown)} of {len(records)}", shown))
    return choices


def display_scale(result: EvaluationResult) -> Scale:
    """Colours are relative to the threshold; without a usable one, to the highest good score."""
    if result.threshold is not None and result.threshold > 0:
        return Scale(result.threshold, "threshold")
    good = [r.score for r in result.records if r.sample.good and r.score is not None]
    if good and max(good) > 0:
        return Scale(max(good), "highest good score")
    return Scale(1.0, "unit")


def _spread(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """Evenly over the ranks: the median for one, the quartiles for two."""
    ranked = sorted(records, key=score_order, reverse=True)
    count = min(count, len(ranked))
    return [ranked[int((i + 0.5) * len(ranked) / count)] for i in range(count)]


def _load(
    result: EvaluationResult,
    choices: Sequence[Choice],
    runner: Runner,
    progress: Progress | None,
) -> list[Section]:
    total, done, sections = sum(len(records) for _, _, records in choices), 0, []
    for title, note, records in choices:
        rows: list[Row] = []
        for record in records:
            view = load_view(record.sample, result.width, result.height, result.crop)
            inspection = runner.run(view.model_input[None])[0]
            rows.append(make_row(record, view, inspection.anomaly_map))
            done += 1
            if progress is not None:
                progress(done, total)
        sections.append(Section(title, note, rows))
    return sections


def _subtitle(result: EvaluationResult) -> str:
    names = {
        "image_auroc": "image AUROC",
        "pixel_auroc": "pixel AUROC",
        "pixel_auroc_30": "to FPR 0.3",
        "aupro_30": "AUPRO 0.3",
        "image_f1": "F1 at the threshold",
    }
    figures = [
        f"{names[key]} {figure_text(value)}"
        for key, value in result.figures.items()
        if value is not None
    ]
    good = sum(r.sample.good for r in result.records)
    counts = f"{good} good and {len(result.records) - good} anomalous images"
    return "   ·   ".join([counts, *figures])
