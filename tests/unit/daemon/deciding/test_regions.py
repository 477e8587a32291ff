"""Masks against exact geometry, connected areas against SciPy, the reduction against sorting."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from metal_edge.daemon.deciding.regions import (
    MAX_REGIONS,
    Area,
    Corners,
    RegionRules,
    find_areas,
    hottest_count,
    inspected_mask,
    reduce_map,
)
from metal_edge.errors import SettingsError

SHAPE = (5, 6)
# Twice as wide and four times as high as the map, so that all arithmetic is exact.
AREA: Area = (10, 20, 12, 20)


def edges(corners: Corners) -> list[tuple[list[Fraction], list[Fraction]]]:
    """In map pixels, exact."""
    return _edges(tuple(corners))


@cache  # asked for each pixel, and slow in fractions
def _edges(corners: tuple[tuple[float, float], ...]) -> list[tuple[list[Fraction], ...]]:
    points = [[Fraction(x - 10) / 2, Fraction(y - 20) / 4] for x, y in corners]
    return list(zip(points, [*points[1:], points[0]], strict=True))


def overlap(corners: Corners, row: int, column: int) -> tuple[bool, bool]:
    """Does the outline meet the pixel's inside, and the pixel with its border? Liang-Barsky."""
    inner = outer = False
    for (x1, y1), (x2, y2) in edges(corners):
        first, last, parallel_on_border, misses = Fraction(0), Fraction(1), False, False
        for start, step, low in ((x1, x2 - x1, column), (y1, y2 - y1, row)):
            if step == 0:
                misses |= not low <= start <= low + 1
                parallel_on_border |= start in (low, low + 1)
                continue
            enter, leave = sorted(((low - start) / step, (low + 1 - start) / step))
            first, last = max(first, enter), min(last, leave)
        outer |= not misses and first <= last
        point = (x1, y1) == (x2, y2)
        strictly = first < last or (point and column < x1 < column + 1 and row < y1 < row + 1)
        inner |= not misses and not parallel_on_border and strictly
    return inner, outer


def winding(corners: Corners, row: int, column: int) -> int:
    """Of the pixel's centre, by signed crossings of a ray to the right."""
    x, y, turns = column + Fraction(1, 2), row + Fraction(1, 2), 0
    for (x1, y1), (x2, y2) in edges(corners):
        if (y1 <= y) != (y2 <= y) and x1 + (y - y1) * (x2 - x1) / (y2 - y1) > x:
            turns += 1 if y2 > y1 else -1
    return turns


def pixels_of(reference: object, corners: Corners) -> NDArray[np.bool_]:
    assert callable(reference)
    rows, columns = SHAPE
    return np.array([[reference(corners, r, c) for c in range(columns)] for r in range(rows)])


def touches(corners: Corners, row: int, column: int) -> bool:
    return overlap(corners, row, column)[1] or winding(corners, row, column) != 0


def inside(corners: Corners, row: int, column: int) -> bool:
    return not overlap(corners, row, column)[0] and winding(corners, row, column) % 2 == 1


points = st.tuples(st.integers(6, 26), st.integers(16, 44))
polygons = st.lists(points, min_size=3, max_size=7)


@given(polygons)
def test_what_touches_an_inspect_polygon_is_inspected(corners: Corners) -> None:
    expected = pixels_of(touches, corners)
    if not expected.any():
        with pytest.raises(SettingsError, match="polygon 1 lies outside"):
            inspected_mask(SHAPE, AREA, [corners], [])
        return
    np.testing.assert_array_equal(inspected_mask(SHAPE, AREA, [corners], []), expected)


@given(polygons)
def test_only_what_lies_wholly_inside_an_ignore_polygon_is_ignored(corners: Corners) -> None:
    expected = ~pixels_of(inside, corners)
    if not expected.any():
        with pytest.raises(SettingsError, match="nothing is left"):
            inspected_mask(SHAPE, AREA, [], [corners])
        return
    np.testing.assert_array_equal(inspected_mask(SHAPE, AREA, [], [corners]), expected)


@given(st.lists(polygons, max_size=2), st.lists(polygons, max_size=2), polygons)
def test_polygons_add_up_and_ignore_wins(
    inspect: list[Corners], ignore: list[Corners], more: Corners
) -> None:
    try:
        mask = inspected_mask(SHAPE, AREA, inspect, ignore)
        larger = inspected_mask(SHAPE, AREA, inspect, [*ignore, more])
    except SettingsError:
        return
    assert larger is not None
    wanted = np.logical_or.reduce([pixels_of(touches, c) for c in inspect] or [np.ones(SHAPE)])
    for corners in ignore:
        wanted &= ~pixels_of(inside, corners)
    np.testing.assert_array_equal(np.ones(SHAPE, bool) if mask is None else mask, wanted)
    assert not (larger & ~wanted).any()


def box(left: float, top: float, right: float, bottom: float) -> Corners:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def test_a_box_along_pixel_borders_ignores_exactly_its_pixels() -> None:
    """A third of a pixel is no binary fraction: the border still counts as a border."""
    mask = inspected_mask((6, 6), (7, 3, 2, 2), [], [box(7, 3, 7 + 1, 3 + 2 / 3)])
    assert mask is not None
    expected = np.ones((6, 6), bool)
    expected[:2, :3] = False
    np.testing.assert_array_equal(mask, expected)


def test_a_box_along_pixel_borders_inspects_also_what_it_only_touches() -> None:
    """A fifth is no binary fraction: whatever the rounding, a touch is a touch."""
    for cells in range(1, 5):
        end = 2 * cells / 5
        mask = inspected_mask((5, 5), (7, 3, 2, 2), [box(7, 3, 7 + end, 3 + end)], [])
        assert mask is not None
        expected = np.zeros((5, 5), bool)
        expected[: cells + 1, : cells + 1] = True
        np.testing.assert_array_equal(mask, expected)


def test_a_box_a_hair_smaller_ignores_one_ring_less() -> None:
    mask = inspected_mask((6, 6), (0, 0, 6, 6), [], [box(1.01, 1.01, 4.99, 4.99)])
    assert mask is not None
    expected = np.ones((6, 6), bool)
    expected[2:4, 2:4] = False
    np.testing.assert_array_equal(mask, expected)


def test_of_a_polygon_that_crosses_itself_the_doubtful_part_is_inspected() -> None:
    twice = [*box(0, 0, 6, 6), *box(0, 0, 6, 6)]  # wound twice: inside for some, outside for others
    assert inspected_mask((6, 6), (0, 0, 6, 6), [], [twice]).all()
    assert inspected_mask((6, 6), (0, 0, 6, 6), [twice], []).all()


def test_a_mask_that_leaves_nothing_is_an_error() -> None:
    with pytest.raises(SettingsError, match="nothing is left"):
        inspected_mask((6, 6), (0, 0, 6, 6), [], [box(-5, -5, 50, 50)])
    with pytest.raises(SettingsError, match="nothing is left"):
        inspected_mask((6, 6), (0, 0, 6, 6), [box(2, 2, 3, 3)], [box(0, 0, 5, 5)])


def test_a_polygon_outside_of_the_crop_is_an_error_even_beside_a_good_one() -> None:
    with pytest.raises(SettingsError, match="polygon 2 lies outside"):
        inspected_mask((6, 6), (100, 100, 6, 6), [box(101, 101, 103, 103), box(0, 0, 50, 50)], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_corner_that_is_not_finite_is_an_error(bad: float) -> None:
    corners = [(0.0, 0.0), (6.0, bad), (6.0, 6.0)]
    with pytest.raises(SettingsError, match="not finite"):
        inspected_mask((6, 6), (0, 0, 6, 6), [], [corners])


def test_no_polygons_no_mask() -> None:
    assert inspected_mask((6, 6), (0, 0, 6, 6), [], []) is None


# Few levels, so that areas of several pixels arise; 0.1 has no exact float32.
levels = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])


@st.composite
def heats(draw: st.DrawFn, rows: int = 9, columns: int = 11) -> NDArray[np.float32]:
    count = rows * columns
    values = draw(st.lists(levels, min_size=count, max_size=count))
    return np.array(values, np.float32).reshape(rows, columns)


@st.composite
def masks(draw: st.DrawFn, rows: int = 9, columns: int = 11) -> NDArray[np.bool_]:
    count = rows * columns
    cells = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return np.array(cells).reshape(rows, columns) > 0


Found = tuple[int, int, int, int, int, float]


def by_scipy(
    heat: NDArray[np.float32], threshold: float, rules: RegionRules
) -> tuple[list[Found], NDArray[np.bool_]]:
    """Areas as (x, y, width, height, pixels, peak), at one source pixel per map pixel."""
    low = threshold if rules.hysteresis is None else threshold * rules.hysteresis
    wanted = np.ones(heat.shape, bool) if rules.inspected is None else rules.inspected
    labels, count = ndimage.label((heat >= low) & wanted, np.ones((3, 3)))
    found, small = [], np.zeros(heat.shape, bool)
    for label, (down, across) in enumerate(ndimage.find_objects(labels), 1):
        own = labels == label
        if heat[own].max() < threshold:
            continue
        if own.sum() < rules.min_area_px:
            small |= own
            continue
        size = (across.stop - across.start, down.stop - down.start)
        peak = float(heat[own].max())
        found.append((across.start, down.start, *size, int(own.sum()), peak))
    assert count == labels.max()
    return found, small


@given(
    heats(),
    st.sampled_from([0.1, 0.5, 0.75, 2.0]),
    st.none() | masks(),
    st.integers(0, 6),
    st.none() | st.sampled_from([0.2, 0.5, 0.99]),
)
def test_areas_are_those_that_scipy_finds(
    heat: NDArray[np.float32],
    threshold: float,
    mask: NDArray[np.bool_] | None,
    min_area: int,
    hysteresis: float | None,
) -> None:
    rules = RegionRules((0, 0, 11, 9), (9, 11), mask, min_area, hysteresis)
    got = find_areas(heat, threshold, rules.area, rules)
    expected, small = by_scipy(heat, threshold, rules)
    boxes = [(r.x, r.y, r.width, r.height, r.area, r.peak) for r in got.regions]
    assert [b[5] for b in boxes] == sorted((e[5] for e in expected), reverse=True)[:MAX_REGIONS]
    if len(expected) <= MAX_REGIONS:
        assert sorted(boxes) == sorted(expected)
    else:
        assert set(boxes) <= set(expected)
    if got.too_small is None:
        assert not small.any()
    else:
        np.testing.assert_array_equal(got.too_small, small)


def boxes(heat: NDArray[np.float32], hysteresis: float | None) -> list[tuple[int, int, int, int]]:
    rules = RegionRules((0, 0, 11, 9), (9, 11), hysteresis=hysteresis)
    found = find_areas(heat, 0.5, rules.area, rules).regions
    return [(r.x, r.y, r.x + r.width, r.y + r.height) for r in found]


@given(heats(), st.floats(0.01, 0.99))
def test_hysteresis_never_shrinks_a_region(heat: NDArray[np.float32], hysteresis: float) -> None:
    grown = boxes(heat, hysteresis)
    if len(grown) == MAX_REGIONS:
        return
    for left, top, right, bottom in boxes(heat, None):
        assert any(g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3] for g in grown)


def test_growth_starts_at_the_threshold_only() -> None:
    heat = np.array([[0.3, 0.5, 0.3, 0.0, 0.3]], np.float32)
    rules = RegionRules((0, 0, 5, 1), (1, 5), hysteresis=0.5)
    (region,) = find_areas(heat, 0.5, rules.area, rules).regions
    assert (region.x, region.width, region.area) == (0, 3, 3)


def test_growth_does_not_enter_what_is_ignored() -> None:
    heat = np.array([[0.5, 0.4, 0.4, 0.9]], np.float32)
    mask = np.array([[True, True, False, False]])
    rules = RegionRules((0, 0, 4, 1), (1, 4), mask, hysteresis=0.5)
    (region,) = find_areas(heat, 0.5, rules.area, rules).regions
    assert (region.x, region.width, region.peak) == (0, 2, 0.5)


def test_a_threshold_below_zero_does_not_grow_inwards() -> None:
    heat = np.array([[-0.7, -2.0, -0.2]], np.float32)
    rules = RegionRules((0, 0, 3, 1), (1, 3), hysteresis=0.5)
    found = find_areas(heat, -1.0, rules.area, rules).regions
    assert [(r.x, r.width) for r in found] == [(2, 1), (0, 1)]


def test_the_minimum_area_is_in_source_pixels() -> None:
    """Three map pixels of 2.5 x 4 source pixels are 30."""
    heat = np.array([[1, 1, 1, 0]], np.float32)
    for least, expected in ((30, 1), (31, 0)):
        rules = RegionRules((0, 0, 10, 4), (1, 4), min_area_px=least)
        found = find_areas(heat, 0.5, rules.area, rules)
        assert len(found.regions) == expected
        assert (found.too_small is None) == bool(expected)
    assert find_areas(heat, 0.5, (0, 0, 10, 4)).regions[0].area == 30


def test_a_threshold_between_two_floats_is_not_rounded_down() -> None:
    below = np.float32(0.1)
    heat = np.array([[below]], np.float32)
    assert find_areas(heat, float(below) + 1e-12, (0, 0, 1, 1)).regions == ()
    assert len(find_areas(heat, float(below), (0, 0, 1, 1)).regions) == 1


@given(heats(), st.integers(1, 99))
def test_the_reduction_is_the_mean_of_the_hottest(heat: NDArray[np.float32], count: int) -> None:
    values = sorted(heat.ravel().tolist(), reverse=True)[:count]
    assert reduce_map(heat, count) == pytest.approx(math.fsum(values) / count, rel=1e-12)


@given(st.integers(0, 2**32), st.sampled_from(["noise", "ties", "stripes", "flat"]), st.data())
def test_the_reduction_of_a_large_map_looks_at_a_sample_and_misses_nothing(
    seed: int, kind: str, data: st.DataObject
) -> None:
    """Stripes are the worst: their period is the sample's, so it sees all of them or none."""
    flat = np.random.default_rng(seed).random(4096).astype(np.float32)
    if kind == "ties":
        flat = np.round(flat, 1)
    elif kind == "stripes":
        flat[seed % 16 :: 16] += 1
    elif kind == "flat":
        flat[:] = 0.25
    count = data.draw(st.integers(1, 4096) | st.sampled_from([2, 64, 256, 300]))
    expected = np.sort(flat)[::-1][:count].mean(dtype=np.float64)
    assert reduce_map(flat.reshape(64, 64), count) == pytest.approx(expected, rel=1e-12)


def test_the_hottest_are_counted_as_the_graph_counts_them() -> None:
    assert [hottest_count(share, 65536) for share in (0.0, 1e-6, 0.001, 0.02, 1.0)] == [
        1,
        1,
        66,
        1311,
        65536,
    ]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 200), st.integers(1, 200), st.data())
def test_regions_cover_the_hot_cells_and_stay_inside(
    rows: int, columns: int, width: int, height: int, data: st.DataObject
) -> None:
    cells = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    heat = np.array(cells, np.float32).reshape(rows, columns)
    x0, y0 = 7, 11
    regions = find_areas(heat, 1.0, (x0, y0, width, height)).regions
    assert len(regions) <= MAX_REGIONS
    for region in regions:
        assert x0 <= region.x and region.x + region.width <= x0 + width
        assert y0 <= region.y and region.y + region.height <= y0 + height
        assert region.width > 0 and region.height > 0 and region.area > 0
        assert region.peak == 1.0
    if len(regions) == MAX_REGIONS:
        return
    for row, column in zip(*np.nonzero(heat), strict=True):
        x, y = x0 + (column + 0.5) * width / columns, y0 + (row + 0.5) * height / rows
        assert any(r.x <= x <= r.x + r.width and r.y <= y <= r.y + r.height for r in regions)


def test_regions_are_the_connected_areas_worst_first() -> None:
    heat = np.zeros((4, 6), np.float32)
    heat[0, 0] = 0.6
    heat[2, 3] = 0.7
    heat[3, 4] = 0.9  # touches by its corner
    first, second = find_areas(heat, 0.5, (100, 50, 12, 8)).regions
    assert (first.x, first.y, first.width, first.height) == (106, 54, 4, 4)
    assert first.peak == pytest.approx(0.9)
    assert first.area == 8
    assert (second.x, second.y, second.width, second.height) == (100, 50, 2, 2)
    assert find_areas(heat, 0.95, (0, 0, 12, 8)).regions == ()


def test_of_many_areas_the_worst_are_told_and_no_more() -> None:
    """A noisy map has thousands; a payload has room for sixteen."""
    heat = np.zeros((11, 11), np.float32)
    peaks = np.linspace(0.6, 0.9, 36, dtype=np.float32)
    heat[::2, ::2] = np.random.default_rng(3).permutation(peaks).reshape(6, 6)
    regions = find_areas(heat, 0.5, (0, 0, 11, 11)).regions
    assert [region.peak for region in regions] == sorted(peaks.tolist(), reverse=True)[:16]
