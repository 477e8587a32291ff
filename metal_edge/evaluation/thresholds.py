"""A score threshold with a promise, from held-out good images: split conformal prediction.

If the calibration images and the next good part are exchangeable, the next score exceeds the
k-th smallest of n calibration scores with probability at most (n + 1 - k) / (n + 1). References:
Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World" (2005); Lei et al.,
"Distribution-Free Predictive Inference for Regression" (JASA 2018); Angelopoulos and Bates, "A
Gentle Introduction to Conformal Prediction" (2021), section 1 and, for the spread between
calibration sets, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metal_edge.errors import DataError, ExitCode, MetalEdgeError, SettingsError

LADDER = (0.01, 0.02, 0.05, 0.1, 0.2)


class UnsupportedRateError(MetalEdgeError):
    """Too few held-out good images to guarantee the wanted false reject rate."""

    exit_code = ExitCode.DATA


@dataclass(frozen=True, slots=True)
class ConformalThreshold:
    """A calibrated threshold and what it promises.

    Attributes:
        score: a part passes when its float32 score is strictly below this float32 number.
        false_reject_rate: the rate that was asked for.
        guaranteed_rate: the rate promised, (n + 1 - k) / (n + 1); never above the former. It is
            an average over calibration sets and parts.
        upper95: with 95 % confidence over calibration sets, this line's own long-run false
            reject rate is at most this.
        n: held-out good images.
        k: the calibration score of this rank (1 = smallest) still passes.
    """

    score: float
    false_reject_rate: float
    guaranteed_rate: float
    upper95: float
    n: int
    k: int

    def statement(self) -> str:
        """The promise in one English sentence; percentages are never rounded down."""
        return (
            f"At most {percent(self.false_reject_rate)} of good parts are rejected (guaranteed"
            f" on average by split conformal prediction from {self.n} held-out good images, for"
            " parts that keep looking like these; with 95 % confidence at most"
            f" {percent(self.upper95)} on this line)."
        )


def conformal_threshold(good_scores: ArrayLike, false_reject_rate: float) -> ConformalThreshold:
    """Calibrates the threshold.

    Args:
        good_scores: [n] scores of good images that the model was not trained on.
        false_reject_rate: wanted share of good parts rejected, in (0, 1).

    Raises:
        SettingsError: the rate is not in (0, 1).
        UnsupportedRateError: fewer than ceil(1 / rate) - 1 images.
        DataError: a score is not finite, or all are equal.
    """
    scores = np.asarray(good_scores, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"need [n] scores, got {scores.shape}")
    n = scores.size
    k = rank(n, false_reject_rate)
    _check_scores(scores)
    # Scores are float32 on the line, so the next float32 is the smallest number that the k-th
    # score is strictly below, in float32 and in Python's floats alike.
    kth = np.float32(np.partition(scores, k - 1)[k - 1])
    return ConformalThreshold(
        score=float(np.nextafter(kth, np.float32(np.inf))),
        false_reject_rate=float(false_reject_rate),
        guaranteed_rate=(n + 1 - k) / (n + 1),
        upper95=beta_quantile(0.95, n + 1 - k, k),
        n=n,
        k=k,
    )


def rank(n: int, false_reject_rate: float) -> int:
    """k = ceil((n + 1)(1 - rate)), exactly, with the rate as it is written in decimal.

    Raises:
        SettingsError: the rate is not in (0, 1).
        UnsupportedRateError: k would exceed n.
    """
    rate = _exact(false_reject_rate)
    k = math.ceil((n + 1) * (1 - rate))
    if k > n:
        needed = math.ceil(1 / rate) - 1
        supported = (
            # Rounded up: a rate copied from here must be accepted.
            f"or accept a rate of at least {math.ceil(10_000 / (n + 1)) / 10_000:g}"
            if n
            else "these support no rate at all"
        )
        raise UnsupportedRateError(
            f"a false reject rate of {percent(false_reject_rate)} needs at least {needed}"
            f" held-out good images, there are {n}",
            f"add {needed - n} good images that were not trained on, {supported}",
        )
    return k


def smallest_supported_rate(n: int) -> float:
    """1 / (n + 1): the tightest false reject rate that n held-out good images can promise."""
    return 1 / (n + 1)


def choose_rate(n: int, wanted: float = 0.01) -> float:
    """The tightest rate of the ladder, not below `wanted`, that n images support.

    Raises:
        SettingsError: `wanted` is not in (0, 1), or above the whole ladder.
        UnsupportedRateError: n supports none of them.
    """
    floor = _exact(wanted)
    candidates = [rate for rate in LADDER if _exact(rate) >= floor]
    if not candidates:
        raise SettingsError(
            f"no usual false reject rate is {wanted:g} or more", "state the rate itself"
        )
    for rate in candidates[:-1]:
        if (n + 1) * _exact(rate) >= 1:
            return rate
    rank(n, candidates[-1])  # raises where even the loosest is out of reach
    return candidates[-1]


def beta_quantile(probability: float, a: int, b: int) -> float:
    """The `probability` quantile of Beta(a, b) for whole a, b >= 1, rounded upwards.

    P(Beta(a, b) <= x) equals P(Binomial(a + b - 1, x) >= a); bisected on x.
    """
    trials = a + b - 1
    hits = np.arange(a, dtype=np.float64)
    steps = np.log((trials - hits[1:] + 1) / hits[1:])
    log_choose = np.concatenate(([0.0], np.cumsum(steps)))
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return high
        terms = log_choose + hits * math.log(middle) + (trials - hits) * math.log1p(-middle)
        if np.exp(terms).sum() > 1 - probability:  # P(Binomial < a): x is still too small
            low = middle
        else:
            high = middle


def percent(rate: float) -> str:
    """A rate in per cent with two significant digits or more, rounded up: '2.5 %'."""
    # Twelve digits first, so that 0.07 is 7 % and not 7.1 % for want of a binary fraction.
    hundredfold = Decimal(f"{rate:.12g}") * 100
    digits = max(0, 1 - hundredfold.adjusted())
    rounded = hundredfold.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING)
    return f"{rounded.normalize():f} %"


def _exact(rate: float) -> Fraction:
    """The rate as written: 0.05 is one twentieth, not the nearest binary fraction."""
    if not (math.isfinite(rate) and 0 < rate < 1):
        raise SettingsError(
            f"a false reject rate must lie between 0 and 1, got {rate}", "0.01 means 1 %"
        )
    return Fraction(repr(float(rate)))


def _check_scores(scores: NDArray[np.float64]) -> None:
    # Beyond float32 is not finite on the line either.
    bad = int(np.count_nonzero(~(np.abs(scores) < np.finfo(np.float32).max)))
    if bad:
        raise DataError(
            f"{bad} of {scores.size} calibration scores are not finite",
            "check the model with `doctor`",
        )
    if scores.size > 1 and bool((scores == scores[0]).all()):
        raise DataError(
            f"all {scores.size} calibration images score {scores[0]:.6g}: the model does not"
            " tell images apart",
            "train or export it again",
        )
