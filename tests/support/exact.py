"""Floating-point results by exact fractions, rounded once: an oracle without NumPy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

# type -> (bits of the significand, exponent of the smallest normal, of the largest)
FORMATS = {
    np.float16: (11, -14, 15),
    np.float32: (24, -126, 127),
    np.float64: (53, -1022, 1023),
}


def nearest(value: Fraction, dtype: type, zero_sign: int = 1) -> float:
    """The nearest number of a format, ties to even, infinity beyond its range."""
    precision, smallest, largest = FORMATS[dtype]
    if value == 0:
        return zero_sign * 0.0
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    steps = magnitude / step
    whole = steps.numerator // steps.denominator
    rest = steps - whole
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1):
        whole += 1
    result = whole * step
    if result >= Fraction(2) ** (largest + 1):
        return float("inf") if value > 0 else float("-inf")
    return float(result) if value > 0 else -float(result)


def same(got: NDArray, wanted: NDArray) -> bool:
    """Equal bit for bit, except that NaN equals any NaN."""
    assert got.dtype == wanted.dtype, (got.dtype, wanted.dtype)
    if got.dtype.kind != "f":
        return np.array_equal(got, wanted)
    bits = f"u{got.itemsize}"
    nan = np.isnan(wanted)
    return np.array_equal(np.isnan(got), nan) and np.array_equal(
        got[~nan].view(bits), wanted[~nan].view(bits)
    )
