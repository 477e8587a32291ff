"""A runner over labelled images: every figure of the report, in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.data import Sample
from metal_edge.domain import FloatMap, Image, Inspection, Verdict
from metal_edge.errors import DataError
from metal_edge.evaluation.metrics import Confusion, PixelCurves, confusion_at, image_auroc
from metal_edge.imaging import Crop, prepare, read_image, read_mask
from metal_edge.runtime.base import Runner

MAX_FPR = 0.3

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What the model said of one image.

    `score` is None where the score or the map was not finite; the verdict is then UNKNOWN.
    `verdict` is None where the evaluation had no threshold to compare with.
    """

    sample: Sample
    score: float | None
    verdict: Verdict | None

    @property
    def missed(self) -> bool:
        """A defect that would have left the line."""
        return not self.sample.good and self.verdict is Verdict.PASS

    @property
    def false_reject(self) -> bool:
        """A good part rejected on its score (`unknown` is counted apart)."""
        return self.sample.good and self.verdict is Verdict.REJECT


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Verdicts on all images of one label."""

    images: int
    rejected: int
    unknown: int

    @property
    def reject_rate(self) -> float:
        """Share rejected: the recall of a defect, the false reject rate of `good`."""
        return self.rejected / self.images


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """All figures, and one record per image.

    A figure that cannot be computed is None, and `not_computed` says why. AUROC and AUPRO are
    0..1; the ones up to FPR 0.3 are divided by 0.3. Pixel figures count good images, and defect
    images with a mask, at the mask's own resolution.
    """

    records: tuple[ImageRecord, ...]
    width: int
    height: int
    crop: Crop | None
    threshold: float | None
    image_auroc: float | None
    pixel_auroc: float | None
    pixel_auroc_30: float | None
    aupro_30: float | None
    image_f1: float | None
    confusion: Confusion | None
    not_computed: dict[str, str] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float | None]:
        """The five figures by name."""
        return {
            "image_auroc": self.image_auroc,
            "pixel_auroc": self.pixel_auroc,
            "pixel_auroc_30": self.pixel_auroc_30,
            "aupro_30": self.aupro_30,
            "image_f1": self.image_f1,
        }

    @property
    def labels(self) -> dict[str, LabelCounts]:
        """Counts per label, sorted by name."""
        return {
            label: _count([r for r in self.records if r.sample.label == label])
            for label in sorted({r.sample.label for r in self.records})
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; never NaN."""
        good = [r for r in self.records if r.sample.good]
        defects = {name: counts for name, counts in self.labels.items() if name != "good"}
        return {
            **self.figures,
            "not_computed": dict(self.not_computed),
            "threshold": self.threshold,
            "confusion": None if self.confusion is None else _confusion_dict(self.confusion),
            "counts": {
                "images": len(self.records),
                "good": len(good),
                "anomalous": len(self.records) - len(good),
                "with_masks": sum(r.sample.mask is not None for r in self.records),
                "unknown": sum(r.verdict is Verdict.UNKNOWN for r in self.records),
            },
            "false_reject_rate": _rate(_count(good), self.threshold),
            "per_defect": {
                name: {
                    "images": counts.images,
                    "rejected": counts.rejected,
                    "unknown": counts.unknown,
                    "recall": _rate(counts, self.threshold),
                }
                for name, counts in defects.items()
            },
            "input": {"width": self.width, "height": self.height, "crop": self.crop},
            "images": [_record_dict(r) for r in self.records],
        }


def evaluate(
    runner: Runner,
    samples: Sequence[Sample],
    width: int,
    height: int,
    crop: Crop | None,
    *,
    threshold: float | None,
    batch: int = 8,
    progress: Progress | None = None,
    curves: PixelCurves | None = None,
) -> EvaluationResult:
    """Runs every sample and computes the figures.

    Maps are brought to the truth's size by linear interpolation; the truth is never resized.

    Args:
        samples: good and anomalous test images.
        width, height: the model's input size.
        crop: x, y, width, height in source pixels; masks are cropped alike.
        threshold: a part passes when its score is below; None leaves verdicts and F1 out.
        batch: images per call of the runner.
        progress: called with (done, total) after each batch.
        curves: an empty accumulator that is to see the pixels, for a caller that draws them.

    Raises:
        MissingInputError, DataError: no samples, or a file that cannot be used; names it.
        UnavailableError: the runner's back end failed.
        ValueError: the size is not the runner's, the threshold is not finite, or batch < 1.
    """
    _check_arguments(runner, samples, (height, width, 3), threshold, batch)
    has_masks = any(s.mask is not None for s in samples)
    curves = PixelCurves() if curves is None else curves
    records, broken_maps = list[ImageRecord](), 0
    for start in range(0, len(samples), batch):
        chunk = samples[start : start + batch]
        views = [load_view(sample, width, height, crop) for sample in chunk]
        inspections = runner.run(np.stack([view.model_input for view in views]))
        for sample, view, inspection in zip(chunk, views, inspections, strict=True):
            finite_map = bool(np.isfinite(inspection.anomaly_map).all())
            broken_maps += not finite_map
            if has_masks and finite_map and view.truth is not None:
                curves.update(resize_map(inspection.anomaly_map, view.truth.shape), view.truth)
            records.append(judge(sample, inspection, threshold))
        if progress is not None:
            progress(start + len(chunk), len(samples))
    figures, reasons = _pixel_figures(curves, has_masks, broken_maps)
    return _summarise(records, (width, height, crop), threshold, figures, reasons)


def _check_arguments(
    runner: Runner,
    samples: Sequence[Sample],
    shape: tuple[int, int, int],
    threshold: float | None,
    batch: int,
) -> None:
    if not samples:
        raise DataError("there are no test images", "put some in test/good and test/<defect>")
    if runner.input_shape != shape:
        raise ValueError(f"the runner takes {runner.input_shape}, not {shape}")
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"the threshold must be finite, got {threshold}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One sample as the model and the truth see it.

    Attributes:
        image: uint8 [H, W, 3], what the map covers, at source resolution.
        model_input: uint8 [height, width, 3].
        truth: bool [H, W]; all False for a good part, None for a defect without a mask.
    """

    image: Image
    model_input: Image
    truth: NDArray[np.bool_] | None


def load_view(sample: Sample, width: int, height: int, crop: Crop | None) -> View:
    """Reads a sample's picture and truth.

    Raises:
        MissingInputError, DataError: a file that cannot be used, or a defect's empty mask.
    """
    source = read_image(sample.path)
    try:
        model_input = prepare(source, width, height, crop)
    except DataError as error:
        raise DataError(f"{sample.path}: {error.what}", error.remedy) from error
    rows, columns = source.shape[:2]
    x, y, w, h = crop or (0, 0, columns, rows)
    window = (slice(y, y + h), slice(x, x + w))
    truth: NDArray[np.bool_] | None = None
    if sample.mask is not None:
        whole = read_mask(sample.mask, rows, columns)
        if not sample.good and not whole.any():
            raise DataError(f"mask {sample.mask} marks no defect", "mark it, or remove the image")
        truth = whole[window]
    elif sample.good:
        truth = np.zeros((h, w), np.bool_)
    return View(source[window], model_input, truth)


def resize_map(anomaly_map: FloatMap, shape: tuple[int, ...]) -> FloatMap:
    """Linear interpolation of a float32 [h, w] map to [H, W], pixel centres aligned."""
    size = (shape[1], shape[0])
    out = cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(out, dtype=np.float32)


def judge(sample: Sample, inspection: Inspection, threshold: float | None) -> ImageRecord:
    """Score and verdict of one image: a number that is not finite is UNKNOWN, never PASS."""
    if not (math.isfinite(inspection.score) and np.isfinite(inspection.anomaly_map).all()):
        return ImageRecord(sample, None, Verdict.UNKNOWN)
    if threshold is None:
        return ImageRecord(sample, inspection.score, None)
    passed = inspection.score < threshold
    return ImageRecord(sample, inspection.score, Verdict.PASS if passed else Verdict.REJECT)


def mistakes(result: EvaluationResult) -> dict[str, list[ImageRecord]]:
    """Missed defects (lowest score first), false rejects (highest first), images without score."""
    records = sorted(result.records, key=score_order)
    return {
        "Missed defects": [r for r in records if r.missed],
        "False rejects": [r for r in reversed(records) if r.false_reject],
        "No score": [r for r in records if r.verdict is Verdict.UNKNOWN],
    }


def score_order(record: ImageRecord) -> float:
    """Sort key by score; images without one first."""
    return -math.inf if record.score is None else record.score


def _pixel_figures(
    curves: PixelCurves, has_masks: bool, broken_maps: int
) -> tuple[dict[str, float], dict[str, str]]:
    """The pixel figures, or why there are none."""
    names = ("pixel_auroc", "pixel_auroc_30", "aupro_30")
    reason = None
    if not has_masks:
        reason = "no test image has a ground-truth mask"
    elif broken_maps:
        reason = f"{broken_maps} anomaly maps are not finite"
    else:
        try:
            areas = (curves.auroc(), curves.auroc_up_to(MAX_FPR), curves.aupro(MAX_FPR))
            return dict(zip(names, areas, strict=True)), {}
        except DataError as error:
            reason = error.what
    return {}, dict.fromkeys(names, reason)


def _summarise(
    records: Sequence[ImageRecord],
    view: tuple[int, int, Crop | None],
    threshold: float | None,
    figures: dict[str, float],
    reasons: dict[str, str],
) -> EvaluationResult:
    decided = [(r.score, not r.sample.good) for r in records if r.score is not None]
    scores, truth = [score for score, _ in decided], [anomalous for _, anomalous in decided]
    unknown = len(records) - len(decided)
    confusion = None if threshold is None else confusion_at(scores, truth, threshold)
    if unknown:
        # Leaving the failed images out would flatter the model.
        reasons |= dict.fromkeys(("image_auroc", "image_f1"), f"{unknown} images got no score")
    elif not any(truth) or all(truth):
        missing = "good" if all(truth) else "anomalous"
        reasons["image_auroc"] = f"no {missing} test image"
    else:
        figures["image_auroc"] = image_auroc(scores, truth)
    if "image_f1" not in reasons:
        if confusion is None:
            reasons["image_f1"] = "no threshold"
        elif not any(truth):
            reasons["image_f1"] = "no anomalous test image"
        elif confusion.f1 is not None:
            figures["image_f1"] = confusion.f1
    return EvaluationResult(
        tuple(records),
        *view,
        threshold,
        image_auroc=figures.get("image_auroc"),
        pixel_auroc=figures.get("pixel_auroc"),
        pixel_auroc_30=figures.get("pixel_auroc_30"),
        aupro_30=figures.get("aupro_30"),
        image_f1=figures.get("image_f1"),
        confusion=confusion,
        not_computed=reasons,
    )


def _count(records: Sequence[ImageRecord]) -> LabelCounts:
    return LabelCounts(
        images=len(records),
        rejected=sum(r.verdict is Verdict.REJECT for r in records),
        unknown=sum(r.verdict is Verdict.UNKNOWN for r in records),
    )


def _rate(counts: LabelCounts, threshold: float | None) -> float | None:
    return counts.reject_rate if threshold is not None and counts.images else None


def _confusion_dict(confusion: Confusion) -> dict[str, int]:
    return {name: getattr(confusion, name) for name in ("tp", "fp", "tn", "fn")}


def _record_dict(record: ImageRecord) -> dict[str, Any]:
    return {
        "path": str(record.sample.path),
        "label": record.sample.label,
        "mask": None if record.sample.mask is None else str(record.sample.mask),
        "score": record.score,
        "verdict": None if record.verdict is None else record.verdict.value,
    }
