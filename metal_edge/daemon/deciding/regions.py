"""Where on the anomaly map something is hot, and what of the map counts. Pure arithmetic.

Map pixels are cells of a grid laid over `area`, the part of the source image that the model saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.domain import FloatMap, Region
from metal_edge.errors import SettingsError

Area = tuple[int, int, int, int]  # x, y, width, height in source-image pixels
Mask = NDArray[np.bool_]
Corners = Sequence[tuple[float, float]]

# A payload names the worst places, not every speck of a noisy map.
MAX_REGIONS = 16
# Of a map pixel: an outline this near to a pixel's border runs along it, not through it.
_ON_BORDER = 1e-6
# Selecting from all of a map takes ten times as long as from a sample and what lies above it.
_SAMPLE_STEP = 16


@dataclass(frozen=True, slots=True, eq=False)
class RegionRules:
    """Where, and how large, an anomaly must be: settings rendered for one map.

    Attributes:
        area: what the map covers; a map of another area is not judged by these rules.
        shape: rows and columns of the map.
        inspected: bool [rows, columns]; None inspects everything.
        min_area_px: hot areas below this many source-image pixels do not count.
        hysteresis: areas grow from the threshold out to this share of it; None: no growth.
    """

    area: Area
    shape: tuple[int, int]
    inspected: Mask | None = None
    min_area_px: int = 0
    hysteresis: float | None = None

    @property
    def filters(self) -> bool:
        """True when the score that counts can differ from the graph's own."""
        return self.inspected is not None or self.min_area_px > 0

    @property
    def pixels(self) -> int:
        """How many pixels of the map are inspected."""
        if self.inspected is None:
            return self.shape[0] * self.shape[1]
        return int(np.count_nonzero(self.inspected))

    @property
    def pixel_area(self) -> float:
        """Of one map pixel, in source-image pixels."""
        return (self.area[2] / self.shape[1]) * (self.area[3] / self.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class HotAreas:
    """What is hot on one map.

    Attributes:
        regions: worst first, at most MAX_REGIONS.
        too_small: bool, the pixels of areas below the minimum; None where there are none.
    """

    regions: tuple[Region, ...] = ()
    too_small: Mask | None = None


def inspected_mask(
    shape: tuple[int, int], area: Area, inspect: Sequence[Corners], ignore: Sequence[Corners]
) -> Mask | None:
    """Renders polygons (source-image pixels) to a mask of the map; None inspects everything.

    In doubt a pixel is inspected: it is when it touches an inspect polygon, and it is ignored
    only when it lies wholly inside one ignore polygon. Where an outline crosses itself, `ignore`
    takes the even-odd rule and `inspect` the non-zero one: the smaller and the larger reading.

    Raises:
        SettingsError: a corner is not finite, an inspect polygon lies outside of what the model
            sees, or nothing is left to inspect.
    """
    if not inspect and not ignore:
        return None
    mask = np.full(shape, not inspect)
    for number, corners in enumerate(inspect, 1):
        outline, winding = _trace(corners, shape, area, _ON_BORDER)
        touched = outline | (winding != 0)
        if not touched.any():
            raise SettingsError(
                f"regions.inspect: polygon {number} lies outside of what the model sees",
                "move it; corners are in pixels of the camera's picture",
            )
        mask |= touched
    for corners in ignore:
        outline, winding = _trace(corners, shape, area, -_ON_BORDER)
        mask &= outline | (winding % 2 == 0)
    if not mask.any():
        raise SettingsError(
            "regions: nothing is left to inspect", "make regions.ignore smaller, or inspect larger"
        )
    mask.setflags(write=False)
    return mask


def _trace(
    corners: Corners, shape: tuple[int, int], area: Area, margin: float
) -> tuple[Mask, NDArray[np.int64]]:
    """Which map pixels, wider by `margin`, the outline meets; winding number of every centre."""
    points = np.asarray(corners, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise SettingsError("regions: a corner is not finite", "give x and y in pixels")
    rows, columns = shape
    points = (points - area[:2]) * (columns / area[2], rows / area[3])
    # Changes from one column to the next; running sums over a row give the values.
    met = np.zeros((rows, columns + 1), dtype=np.int64)
    turns = np.zeros((rows, columns + 1), dtype=np.int64)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        _add_edge_pixels(met, start, end, margin)
        _add_edge_turns(turns, start, end)
    return met.cumsum(axis=1)[:, :-1] > 0, turns.cumsum(axis=1)[:, :-1]


Point = NDArray[np.float64]


def _add_edge_pixels(met: NDArray[np.int64], start: Point, end: Point, margin: float) -> None:
    """Marks the pixels of every row that the edge from `start` to `end` (map pixels) meets."""
    low, high = sorted((float(start[1]), float(end[1])))
    row = np.arange(met.shape[0])
    row = row[(row - margin <= high) & (row + 1 + margin >= low)]
    # Where the edge enters and leaves each row; a level edge is in its row from end to end.
    enter, leave = np.maximum(row - margin, low), np.minimum(row + 1 + margin, high)
    first, last = np.full(len(row), start[0]), np.full(len(row), end[0])
    if high > low:
        slope = (end[0] - start[0]) / (end[1] - start[1])
        first, last = (start[0] + (y - start[1]) * slope for y in (enter, leave))
    left = np.ceil(np.minimum(first, last) - 1 - margin)
    right = np.floor(np.maximum(first, last) + margin)
    columns = met.shape[1] - 1
    seen = (left <= right) & (right >= 0) & (left < columns)
    met[row[seen], np.maximum(left[seen], 0).astype(np.intp)] += 1  # each row once
    met[row[seen], np.minimum(right[seen] + 1, columns).astype(np.intp)] -= 1


def _add_edge_turns(turns: NDArray[np.int64], start: Point, end: Point) -> None:
    """Adds the edge's part to the winding numbers of all pixel centres to its left."""
    low, high = sorted((float(start[1]), float(end[1])))
    row = np.arange(turns.shape[0])
    row = row[(row + 0.5 >= low) & (row + 0.5 < high)]
    if row.size == 0:
        return
    x = start[0] + (row + 0.5 - start[1]) * (end[0] - start[0]) / (end[1] - start[1])
    columns = turns.shape[1] - 1
    beyond = np.clip(np.ceil(x - 0.5), 0, columns).astype(np.intp)
    way = 1 if end[1] > start[1] else -1
    turns[row, 0] += way  # each row once
    turns[row, beyond] -= way


def find_areas(
    anomaly_map: FloatMap, threshold: float, area: Area, rules: RegionRules | None = None
) -> HotAreas:
    """Connected areas (8 neighbours) that reach the threshold, inside what is inspected.

    Args:
        anomaly_map: finite float32 [h, w].
        threshold: in the map's unit.
        area: what the map covers.
        rules: minimum area, growth and mask; None: every hot area as it is.
    """
    hot, seeds = _hot(anomaly_map, threshold, rules)
    if not seeds.any():
        return HotAreas()
    # Most of a map is cold, and the part is waiting: nothing below looks outside of this window.
    window = (_extent(hot, 1), _extent(hot, 0))
    hot, heat = hot[window], anomaly_map[window]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(hot.astype(np.uint8), connectivity=8)
    # Only hot pixels, in one pass for all labels: a noisy map has thousands.
    peaks = np.full(count, -np.inf, dtype=np.float32)
    np.maximum.at(peaks, np.asarray(labels[hot], dtype=np.intp), heat[hot])
    stats[:, cv2.CC_STAT_LEFT] += window[1].start
    stats[:, cv2.CC_STAT_TOP] += window[0].start
    per_pixel = (area[2] / anomaly_map.shape[1]) * (area[3] / anomaly_map.shape[0])
    real = peaks >= np.float64(threshold)
    real[0] = False
    large = real & (stats[:, cv2.CC_STAT_AREA] * per_pixel >= (rules.min_area_px if rules else 0))
    order = sorted(np.flatnonzero(large).tolist(), key=lambda label: -peaks[label])[:MAX_REGIONS]
    regions = tuple(
        _region(stats[label], float(peaks[label]), anomaly_map.shape, area) for label in order
    )
    small = real & ~large
    if not small.any():
        return HotAreas(regions)
    too_small = np.zeros(anomaly_map.shape, dtype=np.bool_)
    too_small[window] = small[labels]
    return HotAreas(regions, too_small)


def _extent(mask: Mask, axis: int) -> slice:
    """From the first to the last row (axis 1) or column (axis 0) with something in it."""
    where = np.flatnonzero(mask.any(axis=axis))
    return slice(int(where[0]), int(where[-1]) + 1)


def _hot(anomaly_map: FloatMap, threshold: float, rules: RegionRules | None) -> tuple[Mask, Mask]:
    """What an area may consist of, and what it must hold a pixel of."""
    seeds = anomaly_map >= np.float64(threshold)
    if rules is None:
        return seeds, seeds
    if rules.inspected is not None:
        seeds &= rules.inspected
    if rules.hysteresis is None:
        return seeds, seeds
    # A share of a threshold below zero would lie above it.
    low = min(threshold, threshold * rules.hysteresis)
    hot = anomaly_map >= np.float64(low)
    if rules.inspected is not None:
        hot &= rules.inspected
    return hot, seeds


def _region(stats: NDArray[np.int32], peak: float, shape: tuple[int, ...], area: Area) -> Region:
    x0, y0, width, height = area
    scale_x, scale_y = width / shape[1], height / shape[0]
    left, top, across, down, pixels = (int(v) for v in stats)
    # Outward rounding: the region must cover what it names.
    right, bottom = math.ceil((left + across) * scale_x), math.ceil((top + down) * scale_y)
    x, y = math.floor(left * scale_x), math.floor(top * scale_y)
    return Region(
        x=x0 + x,
        y=y0 + y,
        width=min(right, width) - x,
        height=min(bottom, height) - y,
        area=max(1, round(pixels * scale_x * scale_y)),
        peak=peak,
    )


def hottest_count(score_share: float, pixels: int) -> int:
    """Of how many of the map's pixels the graph's score is the mean (see models/scoring.py)."""
    return max(1, round(score_share * pixels))


def reduce_map(values: FloatMap, hottest: int) -> float:
    """The graph's reduction: mean of the `hottest` highest of `values`, of all if there are fewer.

    Sums in float64, so that the order of the pixels makes no difference that anybody sees.
    """
    flat = values.ravel()
    if hottest == 1:
        return float(flat.max())
    if hottest < flat.size:
        flat = _highest(flat, hottest)
    return float(flat.mean(dtype=np.float64))


def _highest(flat: FloatMap, count: int) -> FloatMap:
    """The `count` highest values: exact; an even sample says which are worth a look."""
    sample = flat[::_SAMPLE_STEP]
    rank = sample.size - 2 * count // _SAMPLE_STEP - _SAMPLE_STEP
    if rank > 0:
        likely = flat[flat >= np.partition(sample, rank)[rank]]
        if likely.size >= count:
            flat = likely
    return np.partition(flat, flat.size - count)[flat.size - count :]
