"""The evaluation as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from metal_edge.data import GOOD
from metal_edge.domain import Verdict
from metal_edge.evaluation.evaluate import EvaluationResult, ImageRecord, mistakes

_SHOWN = 10  # mistakes listed per kind

_FIGURES = {
    "image_auroc": ("Image AUROC", "an anomalous image outscores a good one this often"),
    "pixel_auroc": ("Pixel AUROC", "the same, pixel by pixel"),
    "pixel_auroc_30": ("Pixel AUROC to FPR 0.3", "its part up to 30 % false positives, / 0.3"),
    "aupro_30": ("AUPRO to FPR 0.3", "per-region overlap: small defects count like large ones"),
    "image_f1": ("Image F1", "at the threshold, anomalous being positive"),
}

_STYLE = """
:root { color-scheme: light; --ink: #1c2128; --soft: #68707a; --line: #dee2e7; --red: #c42b2b;
  --green: #1a7f4b; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 1290px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; max-width: 60rem; } .soft, caption, th { color: var(--soft); }
table { border-collapse: collapse; } th { font-weight: 500; text-align: left; }
th, td { padding: .35rem 1.4rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.pair { display: flex; flex-wrap: wrap; gap: 0 4rem; } .pair p { max-width: 24rem; }
.bar { display: inline-block; width: 10rem; height: .6rem; background: #eceff2; }
.bar i { display: block; height: 100%; background: var(--green); }
.bar i.good { background: var(--red); }
img, svg { max-width: 100%; height: auto; } a { color: inherit; }
"""


def render_page(
    title: str, details: Mapping[str, str], result: EvaluationResult, gallery_png: bytes
) -> str:
    """The whole page. Every name and path is escaped."""
    source = f"data:image/png;base64,{base64.b64encode(gallery_png).decode('ascii')}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(details),
        '<div class="pair"><section><h2>Figures</h2>',
        _figures(result),
        "</section><section><h2>Verdicts</h2>",
        _verdicts(result),
        "</section></div><h2>Scores</h2>",
        _histogram(result),
        "<h2>By label</h2>",
        _labels(result),
        f'<div class="pair">{"".join(_mistakes(result))}</div>',
        "<h2>Gallery</h2>",
        f'<img alt="images, truth, anomaly maps and verdicts" src="{source}">',
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def figure_text(value: float | None) -> str:
    """Four decimals; only a perfect figure reads 1.0000."""
    if value is None:
        return "-"
    return f"{value if value == 1 else min(value, 0.9999):.4f}"


def _facts(details: Mapping[str, str]) -> str:
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in details.items())
    return f"<table>{''.join(rows)}</table>" if details else ""


def _figures(result: EvaluationResult) -> str:
    rows = []
    for key, value in result.figures.items():
        name, meaning = _FIGURES[key]
        if value is None:
            meaning = f"not computed: {result.not_computed.get(key, 'no reason given')}"
        rows.append(
            [escape(name), figure_text(value), f'<span class="soft">{escape(meaning)}</span>']
        )
    return _table(["Figure", "Value", ""], rows, numeric={1})


def _verdicts(result: EvaluationResult) -> str:
    if result.threshold is None:
        return '<p class="soft">No threshold was given, so there are no verdicts.</p>'
    rows = []
    for name, good in (("good", True), ("anomalous", False)):
        mine = [r.verdict for r in result.records if r.sample.good is good]
        rows.append([name, *(str(mine.count(v)) for v in Verdict)])
    table = _table(["", *(v.value for v in Verdict)], rows, numeric={1, 2, 3})
    return (
        f"{table}<p class='soft'>A part passes when its score is below {result.threshold:.6g};"
        " without a finite score it is unknown and does not pass.</p>"
    )


def _labels(result: EvaluationResult) -> str:
    """Defects first, then good: rejecting is right for the former only, hence another colour."""
    rows = []
    for name in sorted(result.labels, key=lambda name: (name == GOOD, name)):
        counts = result.labels[name]
        row = [escape(name), str(counts.images)]
        if result.threshold is not None:
            rate = 100 * counts.reject_rate
            meaning = "false reject rate" if name == GOOD else "recall"
            kind = ' class="good"' if name == GOOD else ""
            bar = f'<span class="bar"><i{kind} style="width:{rate:.1f}%"></i></span>'
            row += [str(counts.rejected), str(counts.unknown), bar, f"{rate:.1f} % {meaning}"]
        rows.append(row)
    head = ["Label", "Images"]
    if result.threshold is not None:
        head += ["Rejected", "Unknown", "", ""]
    return _table(head, rows, numeric={1, 2, 3})


def _mistakes(result: EvaluationResult) -> Iterable[str]:
    if result.threshold is None:
        return
    for title, records in mistakes(result).items():
        table = _mistake_table(records) if records else '<p class="soft">None.</p>'
        yield f"<section><h2>{title} ({len(records)})</h2>{table}</section>"


def _mistake_table(records: Sequence[ImageRecord]) -> str:
    rows = []
    for record in records[:_SHOWN]:
        path = record.sample.path.resolve()
        link = f'<a href="{escape(path.as_uri())}">{escape(path.name)}</a>'
        score = "-" if record.score is None else f"{record.score:.6g}"
        rows.append([link, escape(record.sample.label), score])
    more = len(records) - _SHOWN
    note = f"<p class='soft'>and {more} more in report.json</p>" if more > 0 else ""
    return _table(["File", "Label", "Score"], rows, numeric={2}) + note


def _histogram(result: EvaluationResult) -> str:
    """Shares of good scores above the axis, of anomalous ones below it, as inline SVG."""
    scored = [(r.score, r.sample.good) for r in result.records if r.score is not None]
    if not scored:
        return '<p class="soft">No image got a score.</p>'
    values = np.array([score for score, _ in scored])
    good = np.array([is_good for _, is_good in scored])
    first, step, bins = _bins(values, result.threshold)
    width, middle = 900, 90
    edges = first + step * np.arange(bins + 1)
    bars = []
    for kind, color, up in ((good, "#7a8794", True), (~good, "#c42b2b", False)):
        counts, _ = np.histogram(values[kind], edges)
        for index in np.flatnonzero(counts):
            tall = 80 * counts[index] / counts.max()
            y = middle - tall if up else middle
            bars.append(
                f'<rect x="{index * width / bins:.1f}" y="{y:.1f}" width="{width / bins - 1:.1f}"'
                f' height="{tall:.1f}" fill="{color}"/>'
            )
    if result.threshold is not None:
        x = width * (result.threshold - first) / (step * bins)
        bars.append(f'<path d="M{x:.1f} 0V180" stroke="#1c2128" stroke-dasharray="4 3"/>')
    return (
        f'<svg viewBox="0 0 {width} 180" width="{width}" role="img"'
        f' aria-label="score histogram">{"".join(bars)}'
        f'<path d="M0 {middle}H{width}" stroke="#dee2e7"/></svg>'
        f'<p class="soft">Scores from {edges[0]:.4g} to {edges[-1]:.4g}: good images grey above the'
        " axis, anomalous ones red below it, each scaled to its own peak; the dashed line is the"
        " threshold.</p>"
    )


def _bins(values: NDArray[np.float64], threshold: float | None) -> tuple[float, float, int]:
    """First edge, width and number of bins; the threshold lies on an edge, so no bar straddles."""
    ends = values if threshold is None else np.append(values, threshold)
    low, high = float(ends.min()), float(ends.max())
    step = (high - low) / 60 or 1.0
    anchor = low if threshold is None else threshold
    below = math.ceil((anchor - low) / step)
    above = math.floor((high - anchor) / step) + 1
    return anchor - below * step, step, below + above


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int]) -> str:
    """Cells are HTML already."""

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (
            f"<{tag}{' class=n' if i in numeric else ''}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"
