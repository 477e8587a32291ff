"""Image and pixel metrics on plain arrays; larger scores mean more anomalous.

Image level: AUROC as the Mann-Whitney statistic, the confusion counts and F1 at a threshold.
Pixel level: AUROC, AUROC up to a false positive rate, and AUPRO (Bergmann et al., "The MVTec
Anomaly Detection Dataset", IJCV 2021, section 5.2), accumulated image by image in constant memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from metal_edge.errors import DataError

# Sign, 8 exponent bits and the 11 leading mantissa bits of a float32: 2^20 bins.
_DROPPED_BITS = 12
_BINS = 1 << (32 - _DROPPED_BITS)
_SIGN = np.uint32(0x8000_0000)


@dataclass(frozen=True, slots=True)
class Confusion:
    """Image counts at a threshold; positive means rejected, true means rightly so."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); None where there is neither an anomaly nor a reject."""
        judged = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / judged if judged else None


def image_auroc(scores: ArrayLike, is_anomalous: ArrayLike) -> float:
    """Probability that an anomalous image outscores a good one, ties counting half.

    Args:
        scores: [n] numbers.
        is_anomalous: [n] booleans.

    Raises:
        DataError: a score is not finite, or one of the two classes is missing.
    """
    values, truth = _paired(scores, is_anomalous)
    good, anomalous = np.sort(values[~truth]), values[truth]
    if not good.size or not anomalous.size:
        raise DataError(
            f"image AUROC needs both classes, got {good.size} good and"
            f" {anomalous.size} anomalous images",
            "add the missing kind to the test set",
        )
    # Each anomalous score beats everything left of it and half of what equals it.
    below = np.searchsorted(good, anomalous, side="left")
    not_above = np.searchsorted(good, anomalous, side="right")
    return float((below.sum() + not_above.sum()) / (2 * good.size * anomalous.size))


def confusion_at(scores: ArrayLike, is_anomalous: ArrayLike, threshold: float) -> Confusion:
    """Counts at a threshold: an image passes only strictly below it.

    Raises:
        DataError: a score or the threshold is not finite.
    """
    values, truth = _paired(scores, is_anomalous)
    if not np.isfinite(threshold):
        raise DataError(f"the threshold is {threshold}", "calibrate it on good images")
    rejected = values >= threshold
    return Confusion(
        tp=int(np.count_nonzero(rejected & truth)),
        fp=int(np.count_nonzero(rejected & ~truth)),
        tn=int(np.count_nonzero(~rejected & ~truth)),
        fn=int(np.count_nonzero(~rejected & truth)),
    )


def f1_at(scores: ArrayLike, is_anomalous: ArrayLike, threshold: float) -> float:
    """F1 of rejecting at `score >= threshold`, anomalous being the positive class.

    Raises:
        DataError: a number is not finite, or there is neither an anomaly nor a reject.
    """
    f1 = confusion_at(scores, is_anomalous, threshold).f1
    if f1 is None:
        raise DataError("F1 needs an anomalous image", "add defects to the test set")
    return f1


def _paired(
    scores: ArrayLike, is_anomalous: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(is_anomalous, dtype=np.bool_)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"need [n] scores and [n] labels, got {values.shape} and {truth.shape}")
    bad = np.count_nonzero(~np.isfinite(values))
    if bad:
        raise DataError(
            f"{bad} of {values.size} image scores are not finite", "check the model with `doctor`"
        )
    return values, truth


class PixelCurves:
    """Pixel AUROC and AUPRO over any number of images in 24 MiB.

    Map values are finite float32. Their bits, made order-preserving, fall into 2^20 bins by the
    leading 20 bits, so a bin spans a relative width of at most 2^-11 at any scale and sign. Two
    pixels in one bin count as tied. Within a bin the true curve stays inside the rectangle of
    the bin's false and true positive rates and the diagonal halves it, so an area is off by at
    most half of the sum of these rectangles; `error_bound` gives that sum for the data seen.
    Pixels further apart than a bin are always ordered rightly.
    """

    def __init__(self) -> None:
        self._normal = np.zeros(_BINS, np.int64)
        self._anomalous = np.zeros(_BINS, np.int64)
        # Each region's pixels weigh 1 / area: the overlap of every region, summed over regions.
        self._overlap = np.zeros(_BINS, np.float64)
        self._regions = 0

    def update(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Adds one image.

        Args:
            anomaly_map: float32 [H, W].
            mask: bool [H, W], True on anomalous pixels; all False for a good image. Its
                8-connected components are the regions of AUPRO.

        Raises:
            ValueError: wrong dtype or shape.
            DataError: the map is not finite; the accumulator stays as it was.
        """
        if anomaly_map.dtype != np.float32 or mask.dtype != np.bool_:
            raise ValueError(f"need float32 and bool, got {anomaly_map.dtype} and {mask.dtype}")
        if anomaly_map.ndim != 2 or anomaly_map.shape != mask.shape:
            raise ValueError(f"need two [H, W] arrays, got {anomaly_map.shape} and {mask.shape}")
        if not np.isfinite(anomaly_map).all():
            raise DataError("an anomaly map is not finite", "check the model with `doctor`")
        bins = _bins_of(anomaly_map)
        _add_counts(self._normal, bins[~mask])
        if not mask.any():
            return
        _add_counts(self._anomalous, bins[mask])
        regions, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        inside = labels[mask]
        areas = np.bincount(inside, minlength=regions)
        np.add.at(self._overlap, bins[mask], 1.0 / areas[inside])
        self._regions += regions - 1  # label 0 is the background

    def merge(self, other: PixelCurves) -> None:
        """Adds what another accumulator has seen."""
        self._normal += other._normal
        self._anomalous += other._anomalous
        self._overlap += other._overlap
        self._regions += other._regions

    def auroc(self) -> float:
        """Area under the pixel ROC curve. Raises DataError without pixels of both kinds."""
        return self.auroc_up_to(1.0)

    def auroc_up_to(self, max_fpr: float) -> float:
        """Area under the pixel ROC curve for FPR <= max_fpr, divided by max_fpr (0..1).

        No McClish correction: chance level is max_fpr / 2.

        Raises:
            DataError: pixels of one kind are missing.
        """
        return _area(*self._curve(self._anomalous), max_fpr)

    def roc(self, points: int) -> list[tuple[float, float]]:
        """The pixel ROC curve for drawing: (FPR, TPR) at `points` evenly spaced FPRs, 0 to 1.

        Raises:
            DataError: pixels of one kind are missing.
        """
        fpr, tpr = self._curve(self._anomalous)
        at = np.linspace(0.0, 1.0, points)
        # Where the curve rises vertically, its upper end counts.
        last = np.searchsorted(fpr, fpr, side="right") - 1 == np.arange(fpr.size)
        heights = np.interp(at, fpr[last], tpr[last])
        return [(float(x), float(y)) for x, y in zip(at, heights, strict=True)]

    def aupro(self, max_fpr: float) -> float:
        """Area under mean per-region overlap against FPR, up to max_fpr, divided by max_fpr.

        The FPR counts every anomaly-free pixel of every image.

        Raises:
            DataError: pixels of one kind are missing.
        """
        return _area(*self._curve(self._overlap), max_fpr)

    def error_bound(self, max_fpr: float, per_region: bool = False) -> float:
        """How far binning can have moved `auroc_up_to`, or with per_region `aupro`."""
        fpr, tpr = self._curve(self._overlap if per_region else self._anomalous)
        _check_fpr(max_fpr)
        reached = fpr[:-1] < max_fpr
        rectangles = np.diff(fpr)[reached] * np.diff(tpr)[reached]
        return float(rectangles.sum() / (2 * max_fpr))

    def _curve(
        self, positive: NDArray[np.int64] | NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False and true positive rates, from rejecting nothing (0, 0) to everything (1, 1)."""
        normal, anomalous = int(self._normal.sum()), int(self._anomalous.sum())
        if not normal or not anomalous:
            raise DataError(
                f"pixel metrics need pixels of both kinds, got {normal} normal and"
                f" {anomalous} anomalous",
                "add defect images with masks to the test set",
            )
        occupied = np.flatnonzero(self._normal + self._anomalous)[::-1]
        return _rates(self._normal[occupied]), _rates(positive[occupied])


def _bins_of(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Order-preserving: a <= b implies bin(a) <= bin(b), for finite floats."""
    # Adding 0 turns -0.0 into 0.0, which would otherwise sort below it.
    bits = (np.ascontiguousarray(anomaly_map) + np.float32(0)).view(np.uint32)
    # Positive floats sort as their bits; negative ones in reverse, below all positive ones.
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ordered >> np.uint32(_DROPPED_BITS)


def _add_counts(histogram: NDArray[np.int64], bins: NDArray[np.uint32]) -> None:
    if not bins.size:
        return
    first = int(bins.min())  # one image occupies a narrow range: count only that
    counts = np.bincount(bins - np.uint32(first))
    histogram[first : first + counts.size] += counts


def _rates(amounts: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.cumsum(amounts, dtype=np.float64)
    rates: NDArray[np.float64] = np.concatenate(([0.0], total / total[-1]))
    return rates


def _area(fpr: NDArray[np.float64], tpr: NDArray[np.float64], max_fpr: float) -> float:
    """Trapezoid area up to max_fpr, interpolating linearly there, divided by max_fpr."""
    _check_fpr(max_fpr)
    kept = int(np.searchsorted(fpr, max_fpr, side="right"))
    x, y = fpr[:kept], tpr[:kept]
    if kept < fpr.size:
        share = (max_fpr - x[-1]) / (fpr[kept] - x[-1])
        x = np.append(x, max_fpr)
        y = np.append(y, y[-1] + share * (tpr[kept] - y[-1]))
    return float(np.trapezoid(y, x) / max_fpr)


def _check_fpr(max_fpr: float) -> None:
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be in (0, 1], got {max_fpr}")
