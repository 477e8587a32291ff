"""Arithmetic of every type against exact integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.exact import nearest, same
from support.ptx_text import DTYPES, apply
from support.ptx_values import extreme_pairs, lanes

INTEGERS = ["s16", "u16", "s32", "u32", "s64", "u64"]
FLOATS = ["f16", "f32", "f64"]
FEW = settings(max_examples=12)


def wrap(value: int, dtype: type) -> int:
    bits = 8 * np.dtype(dtype).itemsize
    value %= 1 << bits
    signed = np.dtype(dtype).kind == "i" and value >= 1 << (bits - 1)
    return value - (1 << bits) if signed else value


def exact(function, type_name: str, *operands: np.ndarray, result: str | None = None) -> np.ndarray:
    """An integer function element by element on Python's integers, wrapped to the result's type."""
    dtype = DTYPES[result or type_name]
    columns = zip(*[operand.tolist() for operand in operands], strict=True)
    return np.array([wrap(function(*row), dtype) for row in columns], dtype)


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


@pytest.mark.parametrize("type_name", INTEGERS)
@given(data=st.data())
@FEW
def test_integer_arithmetic_wraps(type_name: str, data: st.DataObject) -> None:
    a, b, c = (data.draw(lanes(type_name)) for _ in range(3))
    pair, triple = [(type_name, a), (type_name, b)], [(type_name, v) for v in (a, b, c)]
    bits = 8 * a.itemsize
    cases = {
        f"add.{type_name} d, a, b": lambda x, y: x + y,
        f"sub.{type_name} d, a, b": lambda x, y: x - y,
        f"mul.lo.{type_name} d, a, b": lambda x, y: x * y,
        f"mul.hi.{type_name} d, a, b": lambda x, y: x * y >> bits,
        f"min.{type_name} d, a, b": min,
        f"max.{type_name} d, a, b": max,
    }
    for text, function in cases.items():
        assert same(apply(text, type_name, *pair), exact(function, type_name, a, b)), text
    got = apply(f"mad.lo.{type_name} d, a, b, c", type_name, *triple)
    assert same(got, exact(lambda x, y, z: x * y + z, type_name, a, b, c))
    got = apply(f"mad.hi.{type_name} d, a, b, c", type_name, *triple)
    assert same(got, exact(lambda x, y, z: (x * y >> bits) + z, type_name, a, b, c))


@pytest.mark.parametrize("type_name", INTEGERS)
@given(data=st.data())
@FEW
def test_division_truncates_and_the_remainder_has_the_dividends_sign(
    type_name: str, data: st.DataObject
) -> None:
    a = data.draw(lanes(type_name))
    b = data.draw(lanes(type_name))
    b[b == 0] = 1
    pair = [(type_name, a), (type_name, b)]
    assert same(
        apply(f"div.{type_name} d, a, b", type_name, *pair), exact(truncated, type_name, a, b)
    )
    assert same(
        apply(f"rem.{type_name} d, a, b", type_name, *pair),
        exact(lambda x, y: x - truncated(x, y) * y, type_name, a, b),
    )


@pytest.mark.parametrize(
    ("type_name", "wide"), [("s16", "s32"), ("u16", "u32"), ("s32", "s64"), ("u32", "u64")]
)
@given(data=st.data())
@FEW
def test_wide_products_lose_nothing(type_name: str, wide: str, data: st.DataObject) -> None:
    a, b = data.draw(lanes(type_name)), data.draw(lanes(type_name))
    c = data.draw(lanes(wide))
    got = apply(f"mul.wide.{type_name} d, a, b", wide, (type_name, a), (type_name, b))
    assert same(got, exact(lambda x, y: x * y, type_name, a, b, result=wide))
    got = apply(f"mad.wide.{type_name} d, a, b, c", wide, (type_name, a), (type_name, b), (wide, c))
    assert same(got, exact(lambda x, y, z: x * y + z, type_name, a, b, c, result=wide))


@given(data=st.data())
@FEW
def test_signed_only(data: st.DataObject) -> None:
    a, b = data.draw(lanes("s32")), data.draw(lanes("s32"))
    clamp = lambda v: max(-(2**31), min(2**31 - 1, v))  # noqa: E731
    assert same(apply("neg.s32 d, a", "s32", ("s32", a)), exact(lambda x: -x, "s32", a))
    assert same(apply("abs.s32 d, a", "s32", ("s32", a)), exact(abs, "s32", a))
    pair = [("s32", a), ("s32", b)]
    got = apply("add.sat.s32 d, a, b", "s32", *pair)
    assert same(got, exact(lambda x, y: clamp(x + y), "s32", a, b))
    got = apply("sub.sat.s32 d, a, b", "s32", *pair)
    assert same(got, exact(lambda x, y: clamp(x - y), "s32", a, b))
    signed24 = lambda v: wrap(v << 8, np.int32) >> 8  # noqa: E731
    got = apply("mul24.lo.s32 d, a, b", "s32", *pair)
    assert same(got, exact(lambda x, y: signed24(x) * signed24(y), "s32", a, b))
    got = apply("sad.s32 d, a, b, c", "s32", *pair, ("s32", b))
    assert same(got, exact(lambda x, y, z: abs(x - y) + z, "s32", a, b, b))


@given(data=st.data())
@FEW
def test_dp4a(data: st.DataObject) -> None:
    a, b, c = (data.draw(lanes("s32")) for _ in range(3))
    wanted = (a.view(np.int8).astype(np.int64) * b.view(np.int8)).reshape(-1, 4).sum(axis=1) + c
    got = apply("dp4a.s32.s32 d, a, b, c", "s32", ("s32", a), ("s32", b), ("s32", c))
    assert same(got, wanted.astype(np.int32))


def exact_floats(function, type_name: str, *operands: np.ndarray) -> np.ndarray:
    """A function of fractions, rounded once; IEEE's rules where operands are no numbers."""
    dtype = DTYPES[type_name]
    wide = [operand.astype(np.float64) for operand in operands]
    with np.errstate(all="ignore"):
        special = function(*wide)  # right for NaN, infinities and signs of zero
    results = []
    for position in range(len(wide[0])):
        row = [float(column[position]) for column in wide]
        if all(map(math.isfinite, row)) and not (math.isinf(special[position]) and 0 in row):
            zero = -1 if np.signbit(special[position]) else 1
            results.append(nearest(Fraction(function(*map(Fraction, row))), dtype, zero))
        else:
            results.append(float(special[position]))
    return np.array(results).astype(dtype)


@pytest.mark.parametrize("type_name", FLOATS)
@given(data=st.data())
@FEW
def test_float_arithmetic_rounds_once(type_name: str, data: st.DataObject) -> None:
    a, b, c = (data.draw(lanes(type_name)) for _ in range(3))
    pair = [(type_name, a), (type_name, b)]
    cases = {
        f"add.rn.{type_name} d, a, b": lambda x, y: x + y,
        f"sub.{type_name} d, a, b": lambda x, y: x - y,
        f"mul.{type_name} d, a, b": lambda x, y: x * y,
    }
    for text, function in cases.items():
        assert same(apply(text, type_name, *pair), exact_floats(function, type_name, a, b)), text
    got = apply(f"fma.rn.{type_name} d, a, b, c", type_name, *pair, (type_name, c))
    assert same(got, exact_floats(lambda x, y, z: x * y + z, type_name, a, b, c))


def test_fma_does_not_round_twice() -> None:
    # The products are 2**-24 + 2**-60 and 2**-24 - 2**-60. Their sums with c lie beside a tie of
    # float32, and in float64 on it.
    a = np.array([4097 * 2.0**-30, 262143 * 2.0**-30], np.float32)
    b = np.array([16773121 * 2.0**-30, 262145 * 2.0**-30], np.float32)
    c = np.array([1, 1 + 2**-23], np.float32)
    for sign in (1, -1):
        got = apply(
            "fma.rn.f32 d, a, b, c", "f32", ("f32", sign * a), ("f32", b), ("f32", sign * c)
        )
        assert same(got, np.full(2, sign * (1 + 2**-23), np.float32))
        wanted = exact_floats(lambda x, y, z: x * y + z, "f32", sign * a, b, sign * c)
        assert same(got, wanted)


@pytest.mark.parametrize("type_name", FLOATS)
def test_min_and_max_prefer_numbers_and_order_zeros(type_name: str) -> None:
    a, b = extreme_pairs(type_name)
    pair = [(type_name, a), (type_name, b)]

    def pick(x: float, y: float, sign: int) -> float:
        if math.isnan(x) or math.isnan(y):
            return y if math.isnan(x) else x
        first, second = sorted([x, y], key=lambda v: (v, math.copysign(1, v)))
        return second if sign > 0 else first

    for name, sign in (("min", -1), ("max", 1)):
        wanted = [pick(x, y, sign) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        got = apply(f"{name}.{type_name} d, a, b", type_name, *pair)
        assert same(got, np.array(wanted, a.dtype)), name
    nan = np.isnan(a) | np.isnan(b)
    got = apply(f"max.NaN.{type_name} d, a, b", type_name, *pair)
    assert np.array_equal(np.isnan(got), nan)


@pytest.mark.parametrize("type_name", INTEGERS)
def test_division_of_extremes(type_name: str) -> None:
    a, b = extreme_pairs(type_name)
    a, b = a[b != 0], b[b != 0]
    got = apply(f"div.{type_name} d, a, b", type_name, (type_name, a), (type_name, b))
    assert same(got, exact(truncated, type_name, a, b))


@given(data=st.data())
@FEW
def test_packed_halves_are_two_halves(data: st.DataObject) -> None:
    halves = [data.draw(lanes("f16")) for _ in range(3)]
    packed = [("f16x2", each.view(np.uint32)) for each in halves]
    for text, function in (
        ("add.rn.f16x2 d, a, b", lambda x, y: x + y),
        ("sub.rn.f16x2 d, a, b", lambda x, y: x - y),
        ("mul.f16x2 d, a, b", lambda x, y: x * y),
    ):
        got = apply(text, "f16x2", *packed[:2]).view(np.float16)
        assert same(got, exact_floats(function, "f16", *halves[:2])), text
    got = apply("fma.rn.f16x2 d, a, b, c", "f16x2", *packed).view(np.float16)
    assert same(got, exact_floats(lambda x, y, z: x * y + z, "f16", *halves))


@given(a=lanes("f32"), b=lanes("f32"))
@FEW
def test_division_and_roots_are_rounded_correctly(a: np.ndarray, b: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        quotient = a.astype(np.longdouble) / b.astype(np.longdouble)
        root = np.sqrt(a.astype(np.longdouble))
        got = apply("div.rn.f32 d, a, b", "f32", ("f32", a), ("f32", b))
        assert same(got, quotient.astype(np.float32))
        assert same(apply("sqrt.rn.f32 d, a", "f32", ("f32", a)), root.astype(np.float32))
        got = apply("rcp.approx.f32 d, a", "f32", ("f32", b))
        assert same(got, (1 / b.astype(np.longdouble)).astype(np.float32))


@given(a=lanes("f32"), b=lanes("f32"))
@FEW
def test_flush_to_zero(a: np.ndarray, b: np.ndarray) -> None:
    def flush(x: np.ndarray) -> np.ndarray:
        tiny = np.abs(x) < np.float32(2.0**-126)
        return np.where(tiny, np.copysign(np.float32(0), x), x)

    with np.errstate(all="ignore"):
        got = apply("mul.ftz.f32 d, a, b", "f32", ("f32", a), ("f32", b))
        assert same(got, flush(exact_floats(lambda x, y: x * y, "f32", flush(a), flush(b))))
        wanted = np.exp2(flush(a).astype(np.longdouble)).astype(np.float32)
        assert same(apply("ex2.approx.ftz.f32 d, a", "f32", ("f32", a)), flush(wanted))


@given(a=lanes("f32"))
@FEW
def test_saturation_clamps_and_drops_nan(a: np.ndarray) -> None:
    got = apply("add.sat.f32 d, a, b", "f32", ("f32", a), ("f32", np.zeros(8, np.float32)))
    wanted = [0.0 if math.isnan(x) or x <= 0 else min(x, 1.0) for x in a.tolist()]
    assert same(got, np.array(wanted, np.float32))


@given(a=lanes("f32"))
@FEW
def test_sign_and_class(a: np.ndarray) -> None:
    assert same(apply("neg.f32 d, a", "f32", ("f32", a)), -a)
    assert same(apply("abs.f32 d, a", "f32", ("f32", a)), np.abs(a))
    finite = apply("testp.finite.f32 d, a", "pred", ("f32", a))
    assert finite.tolist() == [math.isfinite(x) for x in a.tolist()]
    small = apply("testp.subnormal.f32 d, a", "pred", ("f32", a))
    assert small.tolist() == [0 < abs(x) < 2**-126 for x in a.tolist()]
