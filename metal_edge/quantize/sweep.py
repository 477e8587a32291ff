"""Which blocks can be INT8: each is tried alone, then those that cost most stay in FP32.

Nothing here knows of ONNX or images: `measure` builds and runs a candidate, and the clock is an
argument. What a block costs alone ranks the blocks; whether a choice of them is good enough is
measured on that very choice, since errors of blocks do not add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metal_edge.errors import DataError

AUROC_BUDGET = 0.002
SWEEP_S = 60.0

Advance = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a graph with some blocks in INT8 does to the maps and scores of FP32.

    Attributes:
        map_correlation: of all map pixels of all images.
        score_change: median over images of |score - FP32's| / FP32's.
        image_auroc_loss, pixel_auroc_loss: FP32's minus this graph's; None without labels, or
            masks. Negative where INT8 happens to be better.
    """

    map_correlation: float
    score_change: float
    image_auroc_loss: float | None = None
    pixel_auroc_loss: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and --json; not finite numbers become None."""
        values = {
            "map_correlation": self.map_correlation,
            "score_change": self.score_change,
            "image_auroc_loss": self.image_auroc_loss,
            "pixel_auroc_loss": self.pixel_auroc_loss,
        }
        return {
            key: round(value, 6) if value is not None and math.isfinite(value) else None
            for key, value in values.items()
        }


@dataclass(frozen=True, slots=True)
class Budget:
    """How much INT8 may cost.

    Where there are labels, the AUROCs decide, and maps and scores need only be roughly those of
    FP32: the threshold is calibrated on the INT8 graph. Without labels, maps and scores must
    stay close, since nothing else can be known.

    Attributes:
        auroc_loss: of image and of pixel AUROC.
        image_step: what one swapped pair of images changes in image AUROC. With few images it
            exceeds any sensible budget and one such step is no evidence, so it is allowed.
        labelled, unlabelled: largest 1 - map correlation, largest median score change.
    """

    auroc_loss: float = AUROC_BUDGET
    image_step: float = 0.0
    labelled: tuple[float, float] = (0.05, 0.25)
    unlabelled: tuple[float, float] = (0.01, 0.10)

    def used(self, effect: Effect) -> float:
        """The largest share of a limit that is used up: more than 1 exceeds; never NaN."""
        image, pixel = effect.image_auroc_loss, effect.pixel_auroc_loss
        labels = image is not None or pixel is not None
        decorrelation, change = self.labelled if labels else self.unlabelled
        shares = [(1 - effect.map_correlation) / decorrelation, effect.score_change / change]
        if image is not None:  # a step, and the rounding of the subtraction
            shares.append(_share(image, max(self.auroc_loss, self.image_step * 1.000001)))
        if pixel is not None:
            shares.append(_share(pixel, self.auroc_loss))
        return max(share if math.isfinite(share) else math.inf for share in shares)

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and --json."""
        return {
            "auroc_loss": self.auroc_loss,
            "image_auroc_step": round(self.image_step, 6),
            "with_labels": {
                "map_correlation": 1 - self.labelled[0],
                "score_change": self.labelled[1],
            },
            "without_labels": {
                "map_correlation": 1 - self.unlabelled[0],
                "score_change": self.unlabelled[1],
            },
        }

    def allows(self, effect: Effect) -> bool:
        """Whether every limit holds."""
        return self.used(effect) <= 1


def _share(loss: float, limit: float) -> float:
    if loss <= 0:
        return 0.0
    return loss / limit if limit else math.inf


Measure = Callable[[Sequence[str]], Effect]


@dataclass(frozen=True, slots=True)
class Row:
    """One block of the sweep. `effect` is None where time ran out before it was tried."""

    block: str
    layers: int
    effect: Effect | None
    fp32: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and --json."""
        measured = self.effect.as_dict() if self.effect is not None else None
        return {"block": self.block, "layers": self.layers, "alone": measured, "fp32": self.fp32}


@dataclass(frozen=True, slots=True)
class Choice:
    """Blocks in INT8, blocks that stay FP32 (costliest first), and what that does together."""

    int8: tuple[str, ...]
    fp32: tuple[str, ...]
    effect: Effect
    everything: Effect


def try_each(
    blocks: Mapping[str, int],
    measure: Measure,
    clock: Callable[[], float],
    limit_s: float = SWEEP_S,
    advance: Advance | None = None,
) -> list[Row]:
    """Measures every block alone in INT8, all others in FP32, until `limit_s` has passed.

    Args:
        blocks: name -> number of layers, in the network's order.
        measure: the effect of these blocks in INT8.
        clock: seconds, monotonic.
        advance: called with (done, total, block).
    """
    started = clock()
    rows = []
    for done, (block, layers) in enumerate(blocks.items(), start=1):
        effect = measure([block]) if clock() - started < limit_s else None
        rows.append(Row(block, layers, effect))
        if advance is not None:
            advance(done, len(blocks), block)
    return rows


def choose(rows: Sequence[Row], measure: Measure, budget: Budget) -> Choice:
    """Keeps as few of the costliest blocks in FP32 as the budget needs.

    First nothing, then 1, 2, 4, ... blocks until the budget is met, then by halving back to the
    fewest: at most about 2 log2(blocks) measurements.

    Args:
        rows: of `try_each`. Blocks that it could not try are given up last.
        measure: as for `try_each`; here on as many images as there is time for.

    Raises:
        DataError: even a single block in INT8 exceeds the budget.
    """
    order = _costliest_first(rows, budget)

    def with_fp32(count: int) -> Effect:
        kept = set(order[:count])
        return measure([row.block for row in rows if row.block not in kept])

    everything = with_fp32(0)
    if budget.allows(everything):
        return Choice(tuple(row.block for row in rows), (), everything, everything)
    bad, good, effect = 0, 1, everything
    while True:
        good = min(good, len(order) - 1)
        if good <= bad:
            raise DataError(
                f"no block of this model can be INT8 within the accuracy budget"
                f" (AUROC loss {budget.auroc_loss:g})",
                "give more varied calibration images, raise --accuracy-budget, or build with"
                " --precision fp16",
            )
        effect = with_fp32(good)
        if budget.allows(effect):
            break
        bad, good = good, good * 2
    while good - bad > 1:
        middle = (good + bad) // 2
        tried = with_fp32(middle)
        if budget.allows(tried):
            good, effect = middle, tried
        else:
            bad = middle
    kept = order[:good]
    int8 = tuple(row.block for row in rows if row.block not in kept)
    return Choice(int8, tuple(kept), effect, everything)


def _costliest_first(rows: Sequence[Row], budget: Budget) -> list[str]:
    def cost(row: Row) -> tuple[float, float]:
        if row.effect is None:
            return (-1.0, 0.0)
        # AUROCs of few images tie; correlation does not.
        return (budget.used(row.effect), 1 - row.effect.map_correlation)

    return [row.block for row in sorted(rows, key=cost, reverse=True)]
