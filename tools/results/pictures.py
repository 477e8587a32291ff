"""Pictures of the page: ROC curves per data set, and galleries small enough to commit."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from metal_edge.errors import OutputError, UnavailableError
from metal_edge.files import write_bytes
from tools.results.cells import CellResult

MAX_GALLERY_BYTES = 400_000
_GALLERY_WIDTH = 1000
_QUALITIES = (85, 75, 65, 50, 35, 20)


def check_matplotlib() -> None:
    """Asked before hours of training.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UnavailableError(
            "matplotlib, which draws the ROC curves, is not installed",
            "pip install -c constraints.txt -e '.[train,results]'",
        )


def image_roc(scores: Sequence[tuple[float, bool]]) -> NDArray[np.float64]:
    """The ROC curve of image scores.

    Args:
        scores: (score, anomalous) of every image, both kinds present.

    Returns:
        float64 [points, 2]: FPR, TPR from (0, 0) to (1, 1); equal scores share one step.
    """
    values = np.array([score for score, _ in scores])
    truth = np.array([anomalous for _, anomalous in scores])
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    last = np.append(values[1:] != values[:-1], True)  # of each group of equal scores
    tpr = np.cumsum(truth)[last] / truth.sum()
    fpr = np.cumsum(~truth)[last] / (~truth).sum()
    return np.vstack([np.zeros(2), np.column_stack([fpr, tpr])])


def draw_curves(path: Path, name: str, cells: Sequence[CellResult]) -> None:
    """One SVG for a set: image and pixel ROC curves, a line per model.

    Args:
        cells: one per model, in the page's order.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib as mpl  # noqa: PLC0415  (an optional extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    has_pixels = any(cell.pixel_roc for cell in cells)
    # Names and dates that change from run to run would make every commit a difference.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.0 if has_pixels else 5.0, 4.2), layout="constrained")
        panels = figure.subplots(1, 2 if has_pixels else 1, squeeze=False)[0]
        for panel, kind in zip(panels, ("image", "pixel"), strict=False):
            panel.set(xlabel="false positive rate", ylabel="true positive rate")
            panel.set_title(f"{name}: {kind} ROC")
            panel.grid(alpha=0.3)
            panel.plot([0, 1], [0, 1], color="0.8", linewidth=1)
            for cell in cells:
                curve = image_roc(cell.scores) if kind == "image" else np.array(cell.pixel_roc)
                if len(curve):
                    area = cell.figures["image_auroc" if kind == "image" else "pixel_auroc"]
                    label = f"{cell.model} {area:.3f}" if area is not None else cell.model
                    panel.plot(curve[:, 0], curve[:, 1], label=label, linewidth=1.4)
            panel.legend(loc="lower right", fontsize=7)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_bytes(path, content.getvalue())


def shrink_gallery(source: Path, destination: Path) -> None:
    """A gallery PNG as a JPEG below MAX_GALLERY_BYTES.

    Raises:
        OutputError: no quality is small enough.
    """
    with PIL.Image.open(source) as opened:
        picture = opened.convert("RGB")
    if picture.width > _GALLERY_WIDTH:
        height = round(picture.height * _GALLERY_WIDTH / picture.width)
        picture = picture.resize((_GALLERY_WIDTH, height), PIL.Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=quality, optimize=True)
        if len(content.getvalue()) <= MAX_GALLERY_BYTES:
            write_bytes(destination, content.getvalue())
            return
    raise OutputError(f"{source} stays above {MAX_GALLERY_BYTES} bytes", "show fewer pictures")
