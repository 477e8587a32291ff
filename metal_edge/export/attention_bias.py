"""A constant that is added to attention scores, told apart into mask bits and distance slopes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metal_edge.export.masked_attention import Mask, grid_distances

# As large as `models.attention.MASKED_SCORE`, which needs torch to be imported.
FORBIDDEN = -1e4


@dataclass(frozen=True, slots=True)
class Bias:
    """What an additive constant means.

    Attributes:
        allowed: bool [G, N, M], G = 1 where all heads have one mask.
        slopes: per head, or empty; see `MaskedAttentionSpec`.
        columns: of the grid; 0 without slopes.
    """

    allowed: Mask
    slopes: tuple[float, ...] = ()
    columns: int = 0


def read_bias(values: NDArray[Any]) -> Bias | str:
    """Recognises a bias exactly, or says why not.

    Args:
        values: float32 or float16 [heads, N, M]. Forbidden is -1e4 or -inf; the rest must be 0, or
            minus a slope per head times the distance of tokens on a grid, to the last bit.
    """
    forbidden = np.isneginf(values) | (values == values.dtype.type(FORBIDDEN))
    allowed = ~forbidden
    if not allowed.any(axis=2).all():
        return "its mask leaves a query nothing to look at"
    shared = allowed[:1] if (allowed == allowed[:1]).all() else allowed
    rest = np.where(allowed, values, 0)
    if not rest.any():
        return Bias(shared)
    if values.shape[1] != values.shape[2]:
        return "its bias is neither 0 nor -1e4, and its tokens lie on no common grid"
    for columns in _grids(values.shape[1]):
        slopes = _slopes(values, allowed, columns)
        if slopes is not None:
            return Bias(shared, slopes, columns)
    return "its bias is neither 0 nor -1e4, nor a slope times the distance of tokens"


def _grids(tokens: int) -> Iterator[int]:
    """Columns to try: a square first, then every other grid that the tokens fill."""
    side = math.isqrt(tokens)
    if side * side == tokens:
        yield side
    yield from (n for n in range(1, tokens + 1) if tokens % n == 0 and n * n != tokens)


def _slopes(values: NDArray[Any], allowed: Mask, columns: int) -> tuple[float, ...] | None:
    distance = grid_distances(values.shape[1], columns)
    whole = (distance > 0) & (distance == np.rint(distance))
    found = []
    for head, free in zip(values, allowed, strict=True):
        usable = free & whole
        # Of whole distances a bias keeps most digits; which of them all, rounding decides.
        spans, at = np.unique(distance[usable], return_index=True)
        candidates = (-head[usable][at].astype(np.float64) / spans).astype(np.float32)
        slope = next((float(s) for s in candidates if _is_slope(head, free, distance, s)), None)
        if slope is None:
            return None
        found.append(slope + 0.0)  # not -0.0
    return tuple(found)


def _is_slope(head: NDArray[Any], free: Mask, distance: NDArray[np.float64], slope: float) -> bool:
    """By way of float32, in which models make it, also where the graph then has float16."""
    made = (-np.float64(slope) * distance).astype(np.float32).astype(head.dtype)
    return bool((made == head)[free].all())
