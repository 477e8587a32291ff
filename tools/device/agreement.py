"""How far two runners agree on the same frames. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metal_edge.domain import Inspection


@dataclass(frozen=True, slots=True)
class Agreement:
    """One runner against the reference.

    Attributes:
        frames: compared.
        worst_score: largest score difference relative to the reference's threshold.
        map_correlation: over all pixels of all frames; NaN where a map is not finite.
        flipped: verdicts that differ, each runner judged by the same threshold.
        margin: distance of the reference's nearest score to the threshold, relative to it.
    """

    frames: int
    worst_score: float
    map_correlation: float
    flipped: int
    margin: float


def compare(
    reference: Sequence[Inspection], other: Sequence[Inspection], threshold: float
) -> Agreement:
    """Compares frame by frame.

    Args:
        reference, other: what both said of the same frames, in the same order.
        threshold: a part passes when its finite score is below.

    Raises:
        ValueError: none, or not equally many.
    """
    if not reference or len(reference) != len(other):
        raise ValueError(f"cannot compare {len(reference)} with {len(other)} inspections")
    a = np.array([inspection.score for inspection in reference])
    b = np.array([inspection.score for inspection in other])
    maps = [
        np.concatenate([inspection.anomaly_map[::4, ::4].ravel() for inspection in side])
        for side in (reference, other)
    ]
    with np.errstate(invalid="ignore"):  # NaN in, NaN out: the report shows it
        correlation = float(np.corrcoef(maps[0], maps[1])[0, 1])
        passes_a, passes_b = a < threshold, b < threshold
    return Agreement(
        len(a),
        float(np.max(np.abs(a - b)) / threshold),
        correlation,
        int(np.count_nonzero(passes_a != passes_b)),
        float(np.min(np.abs(a - threshold)) / threshold),
    )
