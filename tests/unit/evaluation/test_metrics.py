"""Metrics against hand values, scikit-learn, a brute-force AUPRO, and the laws they obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score, roc_curve

from metal_edge.errors import DataError
from metal_edge.evaluation.metrics import (
    Confusion,
    PixelCurves,
    confusion_at,
    f1_at,
    image_auroc,
)

Maps = list[tuple[NDArray[np.float32], NDArray[np.bool_]]]


def accumulate(images: Maps) -> PixelCurves:
    curves = PixelCurves()
    for anomaly_map, mask in images:
        curves.update(anomaly_map, mask)
    return curves


def random_images(seed: int, count: int = 5, size: tuple[int, int] = (24, 31)) -> Maps:
    """Noisy maps that are higher on rectangular defects; every third image is good."""
    rng = np.random.default_rng(seed)
    images: Maps = []
    for index in range(count):
        mask = np.zeros(size, np.bool_)
        for _ in range(0 if index % 3 == 2 else 1 + index % 3):
            y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
            mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
        images.append(((rng.normal(size=size) + 0.8 * mask).astype(np.float32), mask))
    return images


def components(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """8-connected regions by flood fill, written apart from the library that is under test."""
    left, found = {tuple(p) for p in np.argwhere(mask)}, []
    while left:
        stack = [left.pop()]
        region = np.zeros_like(mask)
        while stack:
            y, x = stack.pop()
            region[y, x] = True
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    stack.append(near)
        found.append(region)
    return found


def partial_area(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    grid = np.concatenate((x[x < limit], [limit]))
    return float(np.trapezoid(np.append(y[x < limit], np.interp(limit, x, y)), grid) / limit)


def brute_force_aupro(images: Maps, limit: float) -> float:
    """The definition: at every distinct value, mean overlap of regions against global FPR."""
    regions = [(m, region) for m, mask in images for region in components(mask)]
    normal = np.concatenate([m[~mask] for m, mask in images])
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m, _ in images]))[::-1]:
        fpr.append(float((normal >= threshold).mean()))
        pro.append(float(np.mean([(m[region] >= threshold).mean() for m, region in regions])))
    return partial_area(np.array(fpr), np.array(pro), limit)


def exact_auroc_up_to(images: Maps, limit: float) -> float:
    scores = np.concatenate([m.ravel() for m, _ in images])
    truth = np.concatenate([mask.ravel() for _, mask in images])
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return partial_area(fpr, tpr, limit)


# ---------------------------------------------------------------- image level


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.1, 0.9], [False, True], 1.0),
        ([0.9, 0.1], [False, True], 0.0),
        ([0.5, 0.5], [False, True], 0.5),
        # pairs (anomalous, good): 3>1, 3>2, 2>1 win, 2=2 ties: 3.5 of 4
        ([1, 2, 2, 3], [False, False, True, True], 0.875),
    ],
)
def test_image_auroc_by_hand(scores: list[float], truth: list[bool], expected: float) -> None:
    assert image_auroc(scores, truth) == expected


@given(
    hnp.arrays(np.int8, st.integers(2, 60), elements=st.integers(-4, 4)),
    st.integers(0, 2**32 - 1),
)
def test_image_auroc_agrees_with_scikit_learn_and_is_symmetric(
    scores: NDArray[np.int8], seed: int
) -> None:
    truth = np.random.default_rng(seed).random(scores.size) < 0.5
    truth[:2] = False, True
    assert image_auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert image_auroc(-scores, truth) == pytest.approx(1 - image_auroc(scores, truth), abs=1e-12)
    assert image_auroc(np.exp(scores / 2), truth) == image_auroc(scores, truth)


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_image_auroc_needs_both_classes(truth: list[bool]) -> None:
    with pytest.raises(DataError, match="both classes"):
        image_auroc([0.1, 0.2], truth)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="1 of 3 image scores"):
        image_auroc([0.1, bad, 0.3], [False, True, True])
    with pytest.raises(DataError, match="not finite"):
        confusion_at([0.1, bad], [False, True], 0.5)


def test_scores_and_labels_must_pair_up() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        image_auroc([1, 2, 3], [True, False])


def test_a_score_on_the_threshold_is_rejected() -> None:
    scores, truth = [0.2, 0.5, 0.4, 0.5, 0.9], [False, False, True, True, True]
    assert confusion_at(scores, truth, 0.5) == Confusion(tp=2, fp=1, tn=1, fn=1)
    assert f1_at(scores, truth, 0.5) == pytest.approx(2 / 3)


@given(st.integers(0, 2**32 - 1), st.floats(-2, 2))
def test_f1_agrees_with_scikit_learn(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.normal(size=30), rng.random(30) < 0.4
    truth[0] = True
    assert f1_at(scores, truth, threshold) == pytest.approx(f1_score(truth, scores >= threshold))


def test_f1_without_anomalies_or_threshold_is_refused() -> None:
    with pytest.raises(DataError, match="F1 needs"):
        f1_at([0.1, 0.2], [False, False], 0.5)
    with pytest.raises(DataError, match="threshold"):
        f1_at([0.1, 0.2], [False, True], float("nan"))


# ---------------------------------------------------------------- pixel level


def test_aupro_by_hand_weighs_regions_not_pixels() -> None:
    """Two regions: one of 1 pixel found first, one of 4 pixels found after half the normal ones."""
    mask = np.zeros((1, 15), np.bool_)
    mask[0, 0] = True
    mask[0, 2:6] = True
    anomaly_map = np.zeros((1, 15), np.float32)
    anomaly_map[0, 0] = 4.0
    anomaly_map[0, 6:11] = 3.0  # 5 of 10 normal pixels
    anomaly_map[mask] = np.where(anomaly_map[mask] == 4.0, 4.0, 2.0)
    curves = accumulate([(anomaly_map, mask)])
    # PRO is 1/2 from FPR 0 to .5, then 1.
    assert curves.aupro(0.3) == pytest.approx(0.5)
    assert curves.aupro(1.0) == pytest.approx(0.75)
    # By pixels only one of five is found first.
    assert curves.auroc_up_to(0.3) == pytest.approx(0.2)
    assert curves.auroc() == pytest.approx(0.2 * 0.5 + 1.0 * 0.5)


def test_diagonal_neighbours_are_one_region() -> None:
    mask = np.zeros((4, 4), np.bool_)
    mask[0, 0] = mask[1, 1] = mask[3, 3] = True
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[0, 0] = anomaly_map[1, 1] = 2.0
    anomaly_map[~mask] = 1.0
    assert accumulate([(anomaly_map, mask)]).aupro(0.3) == pytest.approx(0.5)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_areas_agree_with_references_within_the_stated_bound(seed: int, limit: float) -> None:
    images = random_images(seed)
    curves = accumulate(images)
    roc, pro = curves.error_bound(limit), curves.error_bound(limit, per_region=True)
    assert max(roc, pro) < 2e-3
    assert curves.auroc_up_to(limit) == pytest.approx(
        exact_auroc_up_to(images, limit), abs=roc + 1e-12
    )
    assert curves.aupro(limit) == pytest.approx(brute_force_aupro(images, limit), abs=pro + 1e-12)


def test_values_a_bin_apart_are_exact_at_every_scale_and_sign() -> None:
    """Steps of 2^-10 relative, from subnormal to huge, both signs: no ties, no error."""
    rng = np.random.default_rng(3)
    for scale in (-1e30, -1.0, -1e-30, 1e-42, 1e-30, 1.0, 1e30):
        values = (scale * (1 + np.arange(1024) / 1024)).astype(np.float32).reshape(32, 32)
        mask = rng.random((32, 32)) < 0.3
        exact = roc_auc_score(mask.ravel(), np.argsort(np.argsort(values.ravel())))
        tolerance = 0.02 if scale == 1e-42 else 1e-12  # subnormals have fewer bits to tell apart
        assert accumulate([(values, mask)]).auroc() == pytest.approx(exact, abs=tolerance)


def test_minus_zero_ties_with_zero() -> None:
    anomaly_map = np.array([[0.0, -0.0]], np.float32)
    assert accumulate([(anomaly_map, np.array([[True, False]]))]).auroc() == 0.5


def test_ties_count_half_and_a_constant_map_is_chance() -> None:
    mask = np.zeros((8, 8), np.bool_)
    mask[2:4, 2:4] = True
    curves = accumulate([(np.full((8, 8), -7.25, np.float32), mask)])
    assert curves.auroc() == pytest.approx(0.5)
    assert curves.auroc_up_to(0.3) == pytest.approx(0.15)
    assert curves.aupro(0.3) == pytest.approx(0.15)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_pixel_laws(seed: int) -> None:
    images = random_images(seed, count=3)
    curves = accumulate(images)
    slack = curves.error_bound(1.0) + 1e-12
    full, part = curves.auroc(), curves.auroc_up_to(0.3)
    # The area beyond FPR .3 is at most .7.
    assert part >= (full - 0.7) / 0.3 - 1e-12
    assert 0 <= part <= 1
    # Reversing the order mirrors the curve.
    mirrored = accumulate([(-m, mask) for m, mask in images])
    assert mirrored.auroc() == pytest.approx(1 - full, abs=1e-12)
    # A monotone transform changes nothing but which pixels share a bin.
    bent = accumulate([(np.exp(m).astype(np.float32), mask) for m, mask in images])
    assert bent.auroc() == pytest.approx(full, abs=slack + bent.error_bound(1.0))
    for area in ("auroc_up_to", "aupro"):
        regions = area == "aupro"
        allowed = curves.error_bound(0.3, regions) + bent.error_bound(0.3, regions) + 1e-12
        assert getattr(bent, area)(0.3) == pytest.approx(getattr(curves, area)(0.3), abs=allowed)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.permutations(range(5)), st.integers(0, 5))
def test_order_and_grouping_do_not_matter(seed: int, order: list[int], cut: int) -> None:
    images = random_images(seed)
    straight = accumulate(images)
    merged = accumulate([images[i] for i in order[:cut]])
    merged.merge(accumulate([images[i] for i in order[cut:]]))
    assert merged.auroc_up_to(0.3) == straight.auroc_up_to(0.3)
    assert merged.aupro(0.3) == pytest.approx(straight.aupro(0.3), abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused_and_leaves_no_trace(bad: float) -> None:
    images = random_images(1)
    curves = accumulate(images)
    broken = images[0][0].copy()
    broken[3, 4] = bad
    with pytest.raises(DataError, match="not finite"):
        curves.update(broken, images[0][1])
    assert curves.aupro(0.3) == accumulate(images).aupro(0.3)


def test_pixel_metrics_need_both_kinds() -> None:
    anomaly_map = np.zeros((4, 4), np.float32)
    for mask in (np.zeros((4, 4), np.bool_), np.ones((4, 4), np.bool_)):
        with pytest.raises(DataError, match="both kinds"):
            accumulate([(anomaly_map, mask)]).aupro(0.3)
    with pytest.raises(DataError, match="both kinds"):
        PixelCurves().auroc()


def test_wrong_arrays_and_limits_are_refused() -> None:
    curves, mask = accumulate(random_images(0)), np.zeros((2, 2), np.bool_)
    with pytest.raises(ValueError, match="float64"):
        curves.update(np.zeros((2, 2)), mask)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8"):
        curves.update(np.zeros((2, 2), np.float32), mask.astype(np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        curves.update(np.zeros((2, 3), np.float32), mask)
    for limit in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="max_fpr"):
            curves.aupro(limit)
