"""Comparisons with NaN, selections, conversions with rounding and saturation, packing."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.exact import nearest, same
from support.ptx_text import DTYPES, apply
from support.ptx_values import lanes

FEW = settings(max_examples=12)
ORDERED = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


def pairs(a: np.ndarray, b: np.ndarray) -> list[tuple]:
    return list(zip(a.tolist(), b.tolist(), strict=True))


@pytest.mark.parametrize("type_name", ["s16", "s32", "u32", "s64", "u64"])
@given(data=st.data())
@FEW
def test_integer_comparisons(type_name: str, data: st.DataObject) -> None:
    a, b = data.draw(lanes(type_name)), data.draw(lanes(type_name))
    b[::2] = a[::2]
    for name, holds in ORDERED.items():
        got = apply(f"setp.{name}.{type_name} d, a, b", "pred", (type_name, a), (type_name, b))
        assert got.tolist() == [holds(x, y) for x, y in pairs(a, b)], name


@given(a=lanes("f32"), b=lanes("f32"))
@FEW
def test_float_comparisons_with_nan(a: np.ndarray, b: np.ndarray) -> None:
    b[::2] = a[::2]
    operands = [("f32", a), ("f32", b)]
    nan = [math.isnan(x) or math.isnan(y) for x, y in pairs(a, b)]
    for name, holds in ORDERED.items():
        ordered = [holds(x, y) and not n for (x, y), n in zip(pairs(a, b), nan, strict=True)]
        assert apply(f"setp.{name}.f32 d, a, b", "pred", *operands).tolist() == ordered, name
        either = [o or n for o, n in zip(ordered, nan, strict=True)]
        assert apply(f"setp.{name}u.f32 d, a, b", "pred", *operands).tolist() == either, name
    assert apply("setp.nan.f32 d, a, b", "pred", *operands).tolist() == nan
    assert apply("setp.num.f32 d, a, b", "pred", *operands).tolist() == [not n for n in nan]


@given(a=lanes("s32"), b=lanes("s32"))
@FEW
def test_setp_combines_and_gives_both_results(a: np.ndarray, b: np.ndarray) -> None:
    body = "{{.reg .pred p, q; setp.gt.s32 p, a, 0; setp.lt.{0}.s32 q|{1}, a, b, {2}p; {3}}}"
    operands = [("s32", a), ("s32", b)]
    for name, combine in (("and", lambda x, y: x and y), ("or", lambda x, y: x or y)):
        got = apply(body.format(name, "_", "", "mov.pred d, q;"), "pred", *operands)
        assert got.tolist() == [combine(x < y, x > 0) for x, y in pairs(a, b)]
        got = apply(body.format(name, "d", "!", ""), "pred", *operands)
        assert got.tolist() == [combine(not x < y, not x > 0) for x, y in pairs(a, b)]


@given(a=lanes("f32"), b=lanes("f32"))
@FEW
def test_selections(a: np.ndarray, b: np.ndarray) -> None:
    choose = "{.reg .pred p; setp.lt.f32 p, a, b; selp.f32 d, a, b, p;}"
    got = apply(choose, "f32", ("f32", a), ("f32", b))
    assert same(got, np.where(a < b, a, b))
    got = apply("slct.f32.f32 d, a, b, c", "f32", ("f32", a), ("f32", b), ("f32", b))
    assert same(got, np.where(b >= 0, a, b))
    got = apply("set.ge.u32.f32 d, a, b", "u32", ("f32", a), ("f32", b))
    assert same(got, np.where(a >= b, np.uint32(0xFFFFFFFF), np.uint32(0)))


@pytest.mark.parametrize("source", ["f16", "f32", "f64"])
@pytest.mark.parametrize("target", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@given(data=st.data())
@settings(max_examples=6)
def test_floats_to_integers_round_and_clamp(source: str, target: str, data: st.DataObject) -> None:
    a = data.draw(lanes(source))
    info = np.iinfo(DTYPES[target])
    rounds = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    for name, rounding in rounds.items():
        wanted = []
        for x in a.tolist():
            if math.isnan(x):  # see cvt in the PTX manual
                wide = source == "f64" or info.bits == 64
                smallest = info.min if info.min else 1 << (info.bits - 1)
                wanted.append(smallest if wide else 0)
            elif math.isinf(x):
                wanted.append(info.max if x > 0 else info.min)
            else:
                wanted.append(max(info.min, min(info.max, rounding(x))))
        got = apply(f"cvt.{name}.{target}.{source} d, a", target, (source, a))
        assert same(got, np.array(wanted, DTYPES[target])), name


@pytest.mark.parametrize("target", ["f16", "f32", "f64"])
@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@given(data=st.data())
@settings(max_examples=6)
def test_integers_to_floats_round_to_even(source: str, target: str, data: st.DataObject) -> None:
    a = data.draw(lanes(source))
    wanted = [nearest(Fraction(x), DTYPES[target]) for x in a.tolist()]
    got = apply(f"cvt.rn.{target}.{source} d, a", target, (source, a))
    assert same(got, np.array(wanted).astype(DTYPES[target]))


@given(data=st.data())
@FEW
def test_floats_to_floats(data: st.DataObject) -> None:
    for source, target in (("f32", "f16"), ("f64", "f32"), ("f64", "f16"), ("f16", "f32")):
        a = data.draw(lanes(source))
        finite = np.isfinite(a)
        wanted = a.astype(np.float64)
        for i in np.flatnonzero(finite):
            sign = -1 if np.signbit(a[i]) else 1
            wanted[i] = nearest(Fraction(float(a[i])), DTYPES[target], sign)
        rounding = ".rn" if source != "f16" else ""
        got = apply(f"cvt{rounding}.{target}.{source} d, a", target, (source, a))
        with np.errstate(over="ignore"):
            assert same(got, wanted.astype(DTYPES[target])), (source, target)


@given(a=lanes("f32"))
@FEW
def test_truncation_to_half_never_grows(a: np.ndarray) -> None:
    got = apply("cvt.rz.f16.f32 d, a", "f16", ("f32", a)).astype(np.float64)
    for x, y in pairs(a, got):
        if math.isnan(x):
            assert math.isnan(y)
            continue
        assert abs(y) <= abs(x)
        if abs(x) < 65504:  # the next half beyond is further out than x
            beyond = float(np.nextafter(np.float16(abs(y)), np.float16(np.inf)))
            assert beyond > abs(x)


@given(a=lanes("f32"), b=lanes("f32"))
@FEW
def test_packing_puts_the_first_operand_on_top(a: np.ndarray, b: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        wanted = np.stack([b, a], axis=1).astype(np.float16)
    got = apply("cvt.rn.f16x2.f32 d, a, b", "f16x2", ("f32", a), ("f32", b))
    assert same(got.view(np.float16), wanted.reshape(-1))


@given(data=st.data())
@FEW
def test_integers_to_integers_wrap_or_clamp(data: st.DataObject) -> None:
    for source, target in (
        ("s32", "s8"),
        ("s32", "u8"),
        ("u32", "s16"),
        ("s64", "s32"),
        ("s8", "u32"),
    ):
        a = data.draw(lanes(source))
        info = np.iinfo(DTYPES[target])
        wrapped = a.astype(np.int64) if a.dtype != np.uint64 else a
        got = apply(f"cvt.{target}.{source} d, a", target, (source, a))
        assert same(got, wrapped.astype(DTYPES[target]))
        wanted = [max(info.min, min(info.max, x)) for x in a.tolist()]
        got = apply(f"cvt.sat.{target}.{source} d, a", target, (source, a))
        assert same(got, np.array(wanted, DTYPES[target])), (source, target)


@given(a=lanes("s32"))
@FEW
def test_narrow_results_fill_wide_registers(a: np.ndarray) -> None:
    # a signed byte in a 32-bit register keeps its sign
    got = apply("cvt.s8.s32 d, a", "s32", ("s32", a))
    assert same(got, a.astype(np.int8).astype(np.int32))
    got = apply("cvt.u8.s32 d, a", "s32", ("s32", a))
    assert same(got, a.astype(np.uint8).astype(np.int32))


@given(a=lanes("b64"))
@FEW
def test_moves_pack_and_unpack(a: np.ndarray) -> None:
    swap = "{.reg .b32 x, y; mov.b64 {x, y}, a; mov.b64 d, {y, x};}"
    assert same(apply(swap, "b64", ("b64", a)), (a >> np.uint64(32)) | (a << np.uint64(32)))
    quarters = "{.reg .b16 x, y, z, w; mov.b64 {x, y, z, w}, a; mov.b64 d, {w, z, y, x};}"
    wanted = a.view(np.uint16).reshape(-1, 4)[:, ::-1].copy().view(np.uint64).reshape(-1)
    assert same(apply(quarters, "b64", ("b64", a)), wanted)
