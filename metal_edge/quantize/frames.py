"""Which good pictures calibrate INT8, why, and whether they look like those of the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STATISTICS = ("red", "green", "blue", "contrast", "detail")
# Extremes set the ranges, so they come first; the colours of one lamp hardly differ in kind.
_EXTREMES = (
    ("darkest", "brightness", False),
    ("brightest", "brightness", True),
    ("least contrast", "contrast", False),
    ("most contrast", "contrast", True),
    ("least detail", "detail", False),
    ("most detail", "detail", True),
)
SHIFT_LIMIT = 2.0
_SHARE = 90  # per cent of the frames that the shift speaks of
_GREY_LEVEL = 1.0


@dataclass(frozen=True, slots=True)
class ChosenFrame:
    """Position among the candidates, and why it was chosen."""

    index: int
    reason: str


def frame_statistics(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float64 [N, 5] of uint8 [N, H, W, 3], in grey levels: STATISTICS.

    Means of the colours, standard deviation of grey, mean absolute difference of neighbours.
    """
    rows = []
    for image in images:
        grey = image.mean(axis=2, dtype=np.float32)
        steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
        rows.append([*image.mean(axis=(0, 1)), grey.std(), steps / 2])
    return np.array(rows, np.float64).reshape(-1, len(STATISTICS))


def choose_frames(statistics: NDArray[np.float64], count: int) -> list[ChosenFrame]:
    """Up to `count` frames: the extremes first, then evenly spaced by brightness.

    Args:
        statistics: [N, 5] of the candidates, see `frame_statistics`; N distinct pictures.
        count: how many to choose.

    Returns:
        Each once, in the order of the candidates; the same for the same candidates.
    """
    total = len(statistics)
    if total <= count:
        return [ChosenFrame(i, f"all {total} candidates are used") for i in range(total)]
    columns = {
        "brightness": statistics[:, :3].mean(axis=1),
        "contrast": statistics[:, 3],
        "detail": statistics[:, 4],
    }
    chosen: dict[int, str] = {}
    for word, column, highest in _EXTREMES:
        values = columns[column]
        index = int(values.argmax() if highest else values.argmin())
        if len(chosen) < count:
            chosen.setdefault(index, f"{word} of {total} candidates")
    by_brightness = [int(i) for i in np.argsort(columns["brightness"], kind="stable")]
    rest = [i for i in by_brightness if i not in chosen]
    picks = np.linspace(0, len(rest) - 1, count - len(chosen)).round().astype(int)
    for pick in picks:
        rank = by_brightness.index(rest[pick]) + 1
        chosen[rest[pick]] = f"evenly spaced by brightness: rank {rank} of {total}"
    return [ChosenFrame(index, chosen[index]) for index in sorted(chosen)]


def distribution_shift(
    calibration: NDArray[np.float64], training: NDArray[np.float64]
) -> tuple[float, str]:
    """How far calibration frames lie from the training pictures, and in which statistic most.

    A frame's distance is the largest, over the five statistics, of its distance from the training
    median in units of the training's median absolute deviation (at least one grey level). The
    shift is the 90th percentile of the calibration frames' distances over that of the training
    pictures' own: 1 means alike; SHIFT_LIMIT or more deserves a warning.

    Args:
        calibration, training: [N, 5] and [M, 5], see `frame_statistics`.
    """
    median = np.median(training, axis=0)
    spread = np.maximum(np.median(np.abs(training - median), axis=0), _GREY_LEVEL)
    off = np.abs(calibration - median) / spread
    usual = np.abs(training - median) / spread
    beyond = np.percentile(off.max(axis=1), _SHARE) / max(
        float(np.percentile(usual.max(axis=1), _SHARE)), 1.0
    )
    return float(beyond), STATISTICS[int(np.percentile(off, _SHARE, axis=0).argmax())]
