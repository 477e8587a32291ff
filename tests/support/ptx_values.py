"""Random operands of PTX instructions: any bit pattern, the extreme ones often."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support.ptx_text import DTYPES

LANES = 8


def _extremes(dtype: np.dtype) -> list[int]:
    """Bit patterns where implementations go wrong."""
    if dtype.kind == "f":
        info = np.finfo(dtype)
        numbers = [
            0.0, 1.0, info.max, info.smallest_normal, info.smallest_subnormal, np.inf, np.nan,
            1 + info.eps, 1 - info.epsneg, 0.5, 2.0,
        ]  # fmt: skip
        both = np.array([*numbers, *(-np.array(numbers))], dtype)
        return both.view(f"u{dtype.itemsize}").tolist()
    info = np.iinfo(dtype)
    numbers = np.array([info.min, info.min + 1, 0, 1, info.max - 1, info.max], dtype)
    return [*numbers.view(f"u{dtype.itemsize}").tolist(), (1 << 8 * dtype.itemsize) - 1]


def extreme_pairs(type_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Every extreme value of a PTX type with every other."""
    dtype = np.dtype(DTYPES[type_name])
    values = np.array(_extremes(dtype), f"u{dtype.itemsize}").view(dtype)
    return np.repeat(values, len(values)), np.tile(values, len(values))


def lanes(type_name: str) -> st.SearchStrategy:
    """Arrays of LANES values of a PTX type."""
    dtype = np.dtype(DTYPES[type_name])
    bits = np.dtype(f"u{dtype.itemsize}")
    patterns = st.one_of(
        st.sampled_from(_extremes(dtype)), st.integers(0, int(np.iinfo(bits).max))
    )  # fmt: skip
    return hnp.arrays(bits, LANES, elements=patterns, fill=st.nothing()).map(
        lambda array: array.view(dtype)
    )
