"""Arithmetic of PTX where NumPy's differs: rounding, NaN, subnormals, wide products.

NaN results are some NaN: payloads and signs of NaN are not modelled. The `.approx` functions round
correctly, where hardware is off by some units in the last place and differs between generations.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from tools.ptx.types import Array

_SMALLEST_NORMAL = np.float32(2.0**-126)


def flush(value: Any) -> Any:
    """.ftz: subnormal float32 become zeros of the same sign."""
    return np.where(np.abs(value) < _SMALLEST_NORMAL, np.copysign(np.float32(0), value), value)


def flushed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with .ftz on its operands and its result."""
    return lambda *operands: flush(function(*[flush(operand) for operand in operands]))


def saturated(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with .sat of floats: clamped to 0..1, NaN becomes +0."""

    def clamp(*operands: Any) -> Any:
        value = np.asarray(function(*operands))
        zero = value.dtype.type(0)
        return np.where(value > zero, np.minimum(value, value.dtype.type(1)), zero)

    return clamp


def fma32(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float32, rounded once.

    The product is exact in float64, but the sum may not be, and rounding it to float32 would round
    twice. That matters only where the float64 sum lies on a tie of float32, or on a float32; there
    the sum is redone, rounded to odd (Boldo, Melquiond: Emulation of FMA, 2008).
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    bits = np.asarray(total).view(np.int64)
    if ((bits & 0xFFF_FFFF) == 0).any():
        total = _round_to_odd(product, np.asarray(c, np.float64), total)
    return total.astype(np.float32)


def fma16(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float16, rounded once."""
    product = np.multiply(a, b, dtype=np.float64)
    other = np.asarray(c, np.float64)
    return _round_to_odd(product, other, product + other).astype(np.float16)


def fma64(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of float64, rounded once, by exact fractions: slow, and rare in kernels."""
    a, b, c = np.broadcast_arrays(a, b, c)
    result = np.asarray(a * b + c)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    flat = result.reshape(-1)
    triples = zip(a.reshape(-1), b.reshape(-1), c.reshape(-1), strict=True)
    for position, (x, y, z) in enumerate(triples):
        if finite.reshape(-1)[position]:
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            if exact:
                try:
                    flat[position] = float(exact)
                except OverflowError:
                    flat[position] = np.inf if exact > 0 else -np.inf
    return flat.reshape(result.shape)


def _round_to_odd(product: Any, other: Any, total: Any) -> Any:
    """product + other, truncated to float64 with the last bit set where that was inexact."""
    back = total - product
    error = (product - (total - back)) + (other - back)  # exact: Knuth's two-sum
    bits = np.asarray(total).view(np.int64)
    inexact = np.isfinite(total) & np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)  # the exact sum has the larger magnitude
    odd = np.where(inexact, bits + np.where(away, 1, -1), bits)
    return odd.view(np.float64)


def minimum(a: Any, b: Any) -> Any:
    """min of floats: NaN loses against a number, -0 is less than +0."""
    return _signed_zeros(np.fmin(a, b), a, b, np.logical_or)


def maximum(a: Any, b: Any) -> Any:
    """max of floats: NaN loses against a number, +0 is more than -0."""
    return _signed_zeros(np.fmax(a, b), a, b, np.logical_and)


def _signed_zeros(result: Any, a: Any, b: Any, negative: Callable[..., Any]) -> Any:
    zeros = (a == 0) & (b == 0)
    if not np.any(zeros):
        return result
    zero = result.dtype.type(0)
    sign = np.where(negative(np.signbit(a), np.signbit(b)), -zero, zero)
    return np.where(zeros, sign, result)


def high_product(a: Any, b: Any, bits: int) -> Any:
    """The upper half of an integer product; operands of one integer type of 16, 32 or 64 bits."""
    dtype = np.asarray(a).dtype
    if bits < 64:
        wide = np.int64 if dtype.kind == "i" else np.uint64
        product = np.multiply(a, b, dtype=wide)
        return (product >> wide(bits)).astype(dtype)
    x, y = (np.asarray(value).astype(np.uint64) for value in (a, b))
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    low = (x & mask) * (y & mask)
    middle = (x >> half) * (y & mask) + (low >> half)
    other = (x & mask) * (y >> half) + (middle & mask)
    high = (x >> half) * (y >> half) + (middle >> half) + (other >> half)
    if dtype.kind == "i":  # subtract what the sign bits added when they were read as 2**63
        high = high - np.where(np.asarray(a) < 0, y, np.uint64(0))
        high = high - np.where(np.asarray(b) < 0, x, np.uint64(0))
    return high.astype(dtype)


def divide_integers(a: Any, b: Any) -> Any:
    """a / b truncated towards zero. By zero: all bits set, as NVIDIA's hardware gives."""
    a, b = np.asarray(a), np.asarray(b)
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":  # NumPy rounds down
        quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0)))
    return np.where(zero, np.invert(np.zeros_like(a)), quotient).astype(a.dtype)


def remainder(a: Any, b: Any) -> Any:
    """a - (a / b) * b: the sign of a. By zero: a."""
    a, b = np.asarray(a), np.asarray(b)
    return np.where(b == 0, a, a - divide_integers(a, b) * b).astype(a.dtype)


def bfloat16(value: Any) -> Array:
    """float32 to the bits of bf16, rounded to nearest even; NaN stays NaN."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bfloat16(bits: Any) -> Any:
    """Bits of bf16 to float32, exactly."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def as_halves(bits: Any) -> Any:
    """Packed f16x2 bits [...] as float16 [..., 2]: the low half first."""
    return np.ascontiguousarray(bits)[..., None].view(np.float16)


def pack_halves(pairs: Any) -> Any:
    """float16 [..., 2] to packed bits [...]."""
    return np.ascontiguousarray(pairs).view(np.uint32)[..., 0]
