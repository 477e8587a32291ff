"""The score that counts: the graph's own, or its reduction over what is inspected."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from metal_edge.daemon.deciding.decision import Reason, Rules, assess
from metal_edge.daemon.deciding.regions import RegionRules, hottest_count, reduce_map
from metal_edge.domain import Inspection
from metal_edge.export.onnx_model import onnx_from_model, save_model
from metal_edge.models.base import AnomalyModel, ModelConfig
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

Heat = NDArray[np.float32]
Mask = NDArray[np.bool_]
SHAPE = (4, 6)
AREA = (0, 0, 6, 4)
PIXELS = 24
THRESHOLD = 0.5
# As many as the largest share below takes: fewer are refused.
ENOUGH = 5


def rules(
    mask: Mask | None = None,
    min_area: int = 0,
    hysteresis: float | None = None,
    share: float | None = 0.0,
    threshold: float | None = THRESHOLD,
) -> Rules:
    wanted = RegionRules(AREA, SHAPE, mask, min_area, hysteresis)
    return Rules(threshold, 10**9, regions=wanted, score_share=share)


def seen(heat: Heat, share: float = 0.0) -> Inspection:
    """As a graph with this share would say it."""
    return Inspection(heat, reduce_map(heat, hottest_count(share, heat.size)))


def score(heat: Heat, given_rules: Rules) -> float:
    made = assess(seen(heat, given_rules.score_share or 0.0), given_rules, AREA)
    assert made.fault is None and made.score is not None, made.fault
    return made.score


def shaped(values: list[float]) -> Heat:
    return np.array(values, np.float32).reshape(SHAPE)


# Many ties and many hot and nearly hot pixels; a few free values.
_value = st.sampled_from([0.0, 0.1, 0.3, 0.49, 0.5, 0.7]) | st.floats(-1, 2, width=32)
heats = st.lists(_value, min_size=PIXELS, max_size=PIXELS).map(shaped)
masks = st.lists(st.integers(0, 4), min_size=PIXELS, max_size=PIXELS).map(
    lambda cells: np.array(cells).reshape(SHAPE) > 0
)


class Setup(NamedTuple):
    """Settings under which a law is to hold."""

    mask: Mask
    min_area: int
    hysteresis: float | None
    share: float

    def rules(self) -> Rules:
        return rules(*self)


shares = st.sampled_from([0.0, 0.05, 0.1, 0.2])
growths = st.none() | st.floats(0.1, 0.9)
setups = st.builds(Setup, masks, st.integers(0, 5), growths, shares).filter(
    lambda setup: bool(setup.mask.sum() >= ENOUGH)
)
EXACT = 1e-9  # sums of the same numbers in another order


@given(heats, shares, growths)
def test_with_no_mask_and_no_minimum_it_is_the_graphs_own_score(
    heat: Heat, share: float, growth: float | None
) -> None:
    inspection = seen(heat, share)
    for some in (Rules(THRESHOLD, 1), rules(hysteresis=growth, share=None)):
        made = assess(inspection, some, AREA)
        assert (made.score, made.fault) == (inspection.score, None)


@given(heats, shares)
def test_a_mask_of_everything_changes_nothing(heat: Heat, share: float) -> None:
    assert score(heat, rules(np.ones(SHAPE, bool), share=share)) == seen(heat, share).score


@given(heats, setups, st.integers(0, PIXELS - 1), st.sampled_from([0.01, 0.2, 1.0]))
def test_hotter_is_never_better(heat: Heat, setup: Setup, where: int, more: float) -> None:
    hotter = heat.copy()
    hotter.ravel()[where] += np.float32(more)
    assert score(hotter, setup.rules()) >= score(heat, setup.rules()) - EXACT


def test_a_pixel_that_turns_into_a_speck_is_not_better() -> None:
    """Beside an area that is large enough, in a mean of three."""
    heat = np.full(SHAPE, 0.1, np.float32)
    heat[0, 0], heat[0, 1], heat[3, 5] = 0.52, 0.51, 0.499
    some = rules(min_area=2, share=3 / PIXELS)
    before = score(heat, some)
    assert before > THRESHOLD
    heat[3, 5] = 0.6
    assert score(heat, some) >= before


@given(heats, heats, setups)
def test_what_is_ignored_does_not_matter(heat: Heat, other: Heat, setup: Setup) -> None:
    changed = np.where(setup.mask, heat, other)
    assert score(changed, setup.rules()) == pytest.approx(score(heat, setup.rules()), abs=EXACT)


@given(heats, setups, masks)
def test_ignoring_more_never_rejects_more(heat: Heat, setup: Setup, less: Mask) -> None:
    fewer = setup._replace(mask=setup.mask & less)
    assume(fewer.mask.sum() >= ENOUGH)
    smaller = score(heat, fewer.rules())
    assert smaller <= score(heat, setup.rules()) + EXACT
    assert smaller <= seen(heat, setup.share).score + EXACT  # what the threshold is made for


@given(heats, setups, st.integers(0, 5))
def test_a_larger_minimum_never_rejects_more(heat: Heat, setup: Setup, more: int) -> None:
    larger = setup._replace(min_area=setup.min_area + more)
    assert score(heat, larger.rules()) <= score(heat, setup.rules()) + EXACT


@given(heats, setups)
def test_a_minimum_of_nought_is_no_filter(heat: Heat, setup: Setup) -> None:
    kept = np.sort(heat[setup.mask])[::-1][: hottest_count(setup.share, PIXELS)]
    assert score(heat, setup._replace(min_area=0).rules()) == pytest.approx(
        float(kept.mean(dtype=float)), abs=EXACT
    )


@given(heats, setups)
def test_growth_never_passes_more(heat: Heat, setup: Setup) -> None:
    bare = setup._replace(hysteresis=None)
    assert score(heat, setup.rules()) >= score(heat, bare.rules()) - EXACT


@given(heats, setups)
def test_a_rejected_part_has_a_region_and_a_small_spot_has_none(heat: Heat, setup: Setup) -> None:
    made = assess(seen(heat), setup._replace(share=0.0).rules(), AREA)
    assert made.score is not None
    assert (made.score >= THRESHOLD) == bool(made.regions)
    assert all(region.area >= setup.min_area for region in made.regions)
    if made.regions:
        assert made.regions[0].peak == made.score


@given(heats, shares)
def test_specks_alone_never_reject(heat: Heat, share: float) -> None:
    """The only area that could reach this minimum is the whole map."""
    cold = np.where(heat >= THRESHOLD, heat, np.float32(0.1))
    assume(not (cold >= THRESHOLD).all())
    assert score(cold, rules(min_area=PIXELS, share=share)) < THRESHOLD


def test_a_spot_below_the_minimum_passes_and_one_at_it_does_not() -> None:
    heat = np.full(SHAPE, 0.1, np.float32)
    heat[2, 2:5] = 0.9
    assert score(heat, rules(min_area=3)) == pytest.approx(0.9)
    capped = score(heat, rules(min_area=4))
    assert capped < THRESHOLD and capped == pytest.approx(THRESHOLD)


def test_the_mean_is_over_as_many_pixels_as_before() -> None:
    """Two of 24 pixels; one of them is ignored, so the next hottest takes its place."""
    heat = np.full(SHAPE, 0.1, np.float32)
    heat[0, 0], heat[3, 3] = 0.9, 0.7
    mask = np.ones(SHAPE, bool)
    mask[0, 0] = False
    assert score(heat, rules(mask, share=2 / PIXELS)) == pytest.approx(0.4)


def test_what_grew_around_a_speck_counts_as_it_is() -> None:
    heat = np.full(SHAPE, 0.1, np.float32)
    heat[1, 1:4] = 0.3, 0.6, 0.3
    some = rules(min_area=4, hysteresis=0.5, share=3 / PIXELS)
    assert score(heat, some) == pytest.approx((0.5 + 0.3 + 0.3) / 3)


def test_a_mask_of_just_enough_pixels_will_do() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[0, :3] = True
    assert score(np.full(SHAPE, 0.1, np.float32), rules(mask, share=3 / PIXELS)) > 0
    mask[0, 0] = False
    made = assess(seen(COLD, 3 / PIXELS), rules(mask, share=3 / PIXELS), AREA)
    assert made.fault is Reason.INCONSISTENT


FULL = np.ones(SHAPE, bool)
COLD = np.full(SHAPE, 0.1, np.float32)


def spoiled(value: float) -> Heat:
    heat = COLD.copy()
    heat[0, 0] = value
    return heat


CORNER = FULL.copy()
CORNER[0, 0] = False


@pytest.mark.parametrize(
    ("inspection", "some", "fault"),
    [
        (Inspection(spoiled(math.nan), 0.1), rules(CORNER), Reason.NOT_FINITE),
        (Inspection(spoiled(-math.inf), 0.1), rules(CORNER), Reason.NOT_FINITE),
        (Inspection(COLD, math.nan), rules(CORNER), Reason.NOT_FINITE),
        (Inspection(COLD.ravel(), 0.1), rules(CORNER), Reason.NOT_FINITE),
        (Inspection(COLD[:0], 0.1), rules(CORNER), Reason.NOT_FINITE),
        (seen(COLD), rules(CORNER, threshold=None), Reason.NO_THRESHOLD),
        (seen(COLD), rules(CORNER, threshold=math.nan), Reason.NO_THRESHOLD),
        (seen(COLD), rules(CORNER, threshold=math.inf), Reason.NO_THRESHOLD),
        (seen(COLD[:-1]), rules(CORNER), Reason.INCONSISTENT),
        (seen(COLD.T.copy()), rules(), Reason.INCONSISTENT),
        (seen(COLD), rules(CORNER, share=None), Reason.INCONSISTENT),
        (seen(COLD), rules(min_area=3, share=None), Reason.INCONSISTENT),
        (seen(COLD), rules(~FULL), Reason.INCONSISTENT),
        (seen(COLD, 1.0), rules(CORNER, share=1.0), Reason.INCONSISTENT),
        (seen(spoiled(0.4)), rules(CORNER, share=0.2), Reason.INCONSISTENT),
        (Inspection(COLD, 0.3), rules(CORNER), Reason.INCONSISTENT),
        (Inspection(COLD, 0.106), rules(CORNER), Reason.INCONSISTENT),
        (Inspection(spoiled(0.9), 0.1), Rules(0.5, 1, score_share=0.0), Reason.INCONSISTENT),
        (Inspection(spoiled(0.9), 0.9), Rules(0.5, 1, score_share=0.2), Reason.INCONSISTENT),
    ],
)
def test_what_does_not_fit_has_no_score(inspection: Inspection, some: Rules, fault: Reason) -> None:
    made = assess(inspection, some, AREA)
    assert (made.fault, made.score, made.regions) == (fault, None, ())


@pytest.mark.parametrize(("said", "fits"), [(0.40002, True), (0.4001, False), (0.3999, False)])
def test_a_sum_in_another_order_is_the_maps_score(said: float, fits: bool) -> None:
    heat = spoiled(0.4)
    made = assess(Inspection(heat, said), rules(FULL), AREA)
    assert (made.fault is None) == fits


def test_a_difference_far_below_the_threshold_is_none() -> None:
    """A black picture may score 0 on one machine and a little more on another."""
    assert assess(Inspection(COLD * 0, 1e-6), rules(CORNER), AREA).fault is None


@pytest.mark.parametrize("area", [(1, 0, 6, 4), (0, 0, 12, 8)])
def test_a_mask_for_another_part_of_the_picture_proves_nothing(
    area: tuple[int, int, int, int],
) -> None:
    made = assess(seen(COLD), rules(CORNER), area)
    assert made.fault is Reason.INCONSISTENT


any_setups = st.builds(
    Setup, st.none() | masks, st.integers(0, 5), growths, st.none() | st.floats(0, 1)
)


@given(
    st.lists(st.floats(width=32), min_size=PIXELS, max_size=PIXELS).map(shaped) | heats,
    st.none() | st.floats(),
    any_setups,
    st.none() | st.floats(),
)
def test_a_score_is_finite_or_there_is_a_fault(
    heat: Heat, said: float | None, setup: Setup, threshold: float | None
) -> None:
    if said is None and np.isfinite(heat).all():
        inspection = seen(heat, setup.share or 0.0)
    else:
        inspection = Inspection(heat, said or 0.0)
    made = assess(inspection, replace(setup.rules(), threshold=threshold), AREA)
    assert (made.score is None) == (made.fault is not None)
    if made.score is not None:
        assert math.isfinite(made.score)
        assert np.isfinite(heat).all() and math.isfinite(inspection.score)
        assert threshold is not None and math.isfinite(threshold)


class Brightness(AnomalyModel):
    """The error map is the picture's red channel; everything after that is the real thing."""

    def precompute(self, images: Tensor) -> Tensor:
        return images

    def target(self, stored: Tensor) -> Tensor:
        return stored[..., 0].float() / 255

    def forward(self, target: Tensor) -> Tensor:
        return target * 0

    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        return (reconstruction - target).abs().mean()

    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        return (target - reconstruction).abs()


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_the_reduction_reproduces_what_an_exported_graph_says(share: float, tmp_path: Path) -> None:
    side = 32
    config = ModelConfig(image_size=side, blur_sigma=1.0, weighting=False, score_share=share)
    save_model(onnx_from_model(Brightness(config).eval()), tmp_path / "model.onnx")
    images = np.random.default_rng(1).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    torch.manual_seed(0)
    with OnnxRuntimeRunner(tmp_path / "model.onnx") as runner:
        for inspection in runner.run(images):
            heat = inspection.anomaly_map
            assert heat.shape == (side, side)
            ours = reduce_map(heat, hottest_count(share, heat.size))
            assert ours == pytest.approx(inspection.score, rel=1e-6)
            other = reduce_map(heat, hottest_count(share, heat.size) + 2)
            assert share == 1.0 or other != pytest.approx(inspection.score, rel=1e-6)


def test_the_assessment_knows_what_it_was_made_of() -> None:
    inspection, some = seen(COLD), rules(CORNER)
    made = assess(inspection, some, AREA)
    assert made.inspection is inspection and made.rules is some
    assert assess(inspection, replace(some, threshold=None), AREA).inspection is inspection
