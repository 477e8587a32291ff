"""The conformal threshold: exact ranks, the promise by simulation, and what it refuses."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metal_edge.errors import DataError, SettingsError
from metal_edge.evaluation.thresholds import (
    LADDER,
    UnsupportedRateError,
    beta_quantile,
    choose_rate,
    conformal_threshold,
    percent,
    rank,
    smallest_supported_rate,
)


@pytest.mark.parametrize(
    ("n", "rate", "k"),
    [
        (19, 0.05, 19),  # the edge: 20 * .95 is 19 exactly
        (99, 0.01, 99),
        (9, 0.1, 9),
        (999, 0.001, 999),
        (120, 0.01, 120),
        (200, 0.01, 199),  # 201 * .99 = 198.99
        (1, 0.5, 1),
        (9, 0.3, 7),  # 10 * .7 in floats is 7.000000000000001 or 6.99...
        (99, 0.29, 71),
    ],
)
def test_rank_by_hand(n: int, rate: float, k: int) -> None:
    assert rank(n, rate) == k


@pytest.mark.parametrize(("n", "rate"), [(18, 0.05), (98, 0.01), (8, 0.1), (0, 0.5), (0, 0.01)])
def test_one_image_too_few_is_refused(n: int, rate: float) -> None:
    with pytest.raises(UnsupportedRateError):
        rank(n, rate)


def test_the_refusal_says_what_would_do() -> None:
    with pytest.raises(UnsupportedRateError) as error:
        conformal_threshold(np.arange(60), 0.01)
    assert "needs at least 99 held-out good images, there are 60" in error.value.what
    assert "add 39 good images" in error.value.remedy
    assert "at least 0.0164" in error.value.remedy  # 1/61 = .01639..., rounded up


@given(st.integers(1, 5000))
def test_the_rate_in_the_remedy_is_accepted(n: int) -> None:
    with pytest.raises(UnsupportedRateError) as error:
        rank(n, 1e-6)
    rank(n, float(error.value.remedy.rsplit(" ", 1)[1]))


@given(st.integers(1, 3000), st.integers(1, 999))
def test_rank_is_the_smallest_that_keeps_the_promise(n: int, thousandths: int) -> None:
    rate = thousandths / 1000
    wanted = Fraction(thousandths, 1000)
    if Fraction(1, n + 1) > wanted:
        with pytest.raises(UnsupportedRateError):
            rank(n, rate)
        return
    k = rank(n, rate)
    assert Fraction(n + 1 - k, n + 1) <= wanted
    assert k == 0 or Fraction(n + 2 - k, n + 1) > wanted


def test_threshold_by_hand() -> None:
    scores = np.array([5, 1, 4, 2, 3, 9, 8, 7, 6], np.float32)
    result = conformal_threshold(scores, 0.2)
    assert (result.n, result.k) == (9, 8)
    assert result.guaranteed_rate == pytest.approx(0.2)
    assert result.score == np.nextafter(np.float32(8), np.float32(np.inf))


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=19, max_size=60, unique=True),
    st.sampled_from([0.05, 0.1, 0.3]),
)
def test_exactly_k_calibration_scores_pass(scores: list[float], rate: float) -> None:
    """In float32, in Python floats, and after a trip through JSON."""
    result = conformal_threshold(scores, rate)
    stored = json.loads(json.dumps(result.score))
    assert stored == result.score == float(np.float32(result.score))
    assert sum(score < stored for score in scores) == result.k
    assert int((np.array(scores, np.float32) < np.float32(stored)).sum()) == result.k


def test_scores_of_higher_precision_than_float32_still_pass() -> None:
    scores = np.linspace(0.1, 0.7, 19)
    assert scores.max() < conformal_threshold(scores, 0.05).score


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (50, 0.05), (30, 0.1)])
def test_the_promise_holds_on_average_and_upper95_for_most_lines(n: int, rate: float) -> None:
    """Uniform scores: a line's false reject rate is then 1 - threshold."""
    rng = np.random.default_rng(0)
    repeats = 4000
    results = [conformal_threshold(rng.random(n), rate) for _ in range(repeats)]
    rates = np.array([1 - result.score for result in results])
    standard_error = rates.std() / math.sqrt(repeats)
    assert rates.mean() <= results[0].guaranteed_rate + 4 * standard_error
    assert rates.mean() >= results[0].guaranteed_rate - 4 * standard_error  # and is not wasteful
    assert results[0].guaranteed_rate <= rate
    within = (rates <= results[0].upper95).mean()
    assert within == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / repeats))


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1), (1, 99), (2, 119), (3, 998), (40, 161), (500, 4501), (60, 2)]
)
@pytest.mark.parametrize("probability", [0.05, 0.5, 0.95])
def test_beta_quantile_agrees_with_scipy(a: int, b: int, probability: float) -> None:
    expected = stats.beta.ppf(probability, a, b)
    assert beta_quantile(probability, a, b) == pytest.approx(expected, rel=1e-9)


def test_upper95_is_the_rate_that_95_per_cent_of_lines_stay_below() -> None:
    result = conformal_threshold(np.arange(200), 0.02)
    assert result.upper95 == pytest.approx(stats.beta.ppf(0.95, 201 - result.k, result.k))


def test_statement() -> None:
    text = conformal_threshold(np.arange(120), 0.01).statement()
    assert text == (
        "At most 1 % of good parts are rejected (guaranteed on average by split conformal"
        " prediction from 120 held-out good images, for parts that keep looking like these; with"
        " 95 % confidence at most 2.5 % on this line)."
    )


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.01, "1 %"),
        (0.07, "7 %"),
        (0.005, "0.5 %"),
        (0.02471, "2.5 %"),
        (0.1234, "13 %"),
        (0.1, "10 %"),
        (1.0, "100 %"),
        (0.00012, "0.012 %"),
    ],
)
def test_percent_rounds_up(rate: float, text: str) -> None:
    assert percent(rate) == text


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_refused(rate: float) -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        conformal_threshold(np.arange(500), rate)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_scores_that_are_no_float32_numbers_are_refused(bad: float) -> None:
    with pytest.raises(DataError):
        conformal_threshold([*range(17), bad, bad], 0.05)


def test_a_constant_score_is_refused() -> None:
    with pytest.raises(DataError, match=r"all 30 calibration images score 0\.25"):
        conformal_threshold(np.full(30, 0.25), 0.05)


@pytest.mark.parametrize(
    ("n", "rate"),
    [(99, 0.01), (98, 0.02), (49, 0.02), (48, 0.05), (19, 0.05), (18, 0.1), (9, 0.1), (4, 0.2)],
)
def test_choose_rate_takes_the_tightest_supported(n: int, rate: float) -> None:
    assert choose_rate(n) == rate


def test_choose_rate_stays_at_or_above_what_is_wanted() -> None:
    assert choose_rate(10_000, wanted=0.03) == 0.05
    with pytest.raises(UnsupportedRateError, match="20 %"):
        choose_rate(3)
    with pytest.raises(SettingsError, match=r"0\.3"):
        choose_rate(100, wanted=0.3)


@given(st.integers(4, 2000))
def test_what_is_chosen_works_and_is_no_tighter_than_possible(n: int) -> None:
    rate = choose_rate(n)
    assert rate in LADDER
    assert rate >= smallest_supported_rate(n)
    assert conformal_threshold(np.arange(n), rate).guaranteed_rate <= rate
