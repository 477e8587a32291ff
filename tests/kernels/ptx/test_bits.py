"""Bit operations against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.exact import same
from support.ptx_text import DTYPES, apply
from support.ptx_values import LANES, lanes

FEW = settings(max_examples=12)
# Shift amounts and field bounds: mostly small, sometimes beyond the width.
AMOUNTS = hnp.arrays(
    np.uint32, LANES, elements=st.one_of(st.integers(0, 70), st.integers(0, 2**32 - 1))
)  # fmt: skip
BYTES = hnp.arrays(np.uint32, LANES, elements=st.integers(0, 255))


def each(function, dtype: type, *operands: np.ndarray) -> np.ndarray:
    mask = (1 << 8 * np.dtype(dtype).itemsize) - 1
    columns = zip(*[operand.tolist() for operand in operands], strict=True)
    unsigned = np.array([function(*row) & mask for row in columns], f"u{np.dtype(dtype).itemsize}")
    return unsigned.view(dtype)


@pytest.mark.parametrize("type_name", ["b16", "b32", "b64"])
@given(data=st.data(), amounts=AMOUNTS)
@FEW
def test_logic_and_shifts(type_name: str, data: st.DataObject, amounts: np.ndarray) -> None:
    a, b = data.draw(lanes(type_name)), data.draw(lanes(type_name))
    dtype = DTYPES[type_name]
    width = 8 * a.itemsize
    pair = [(type_name, a), (type_name, b)]
    assert same(apply(f"and.{type_name} d, a, b", type_name, *pair), a & b)
    assert same(apply(f"or.{type_name} d, a, b", type_name, *pair), a | b)
    assert same(apply(f"xor.{type_name} d, a, b", type_name, *pair), a ^ b)
    assert same(apply(f"not.{type_name} d, a", type_name, (type_name, a)), ~a)
    assert same(
        apply(f"cnot.{type_name} d, a", type_name, (type_name, a)), each(lambda x: x == 0, dtype, a)
    )
    by = [(type_name, a), ("u32", amounts)]
    left = each(lambda x, n: x << min(n, width), dtype, a, amounts)
    assert same(apply(f"shl.{type_name} d, a, b", type_name, *by), left)
    for kind in "us":  # logical and arithmetic
        typed = a.view(f"{'u' if kind == 'u' else 'i'}{a.itemsize}")
        right = each(lambda x, n: x >> min(n, width), dtype, typed, amounts)
        assert same(apply(f"shr.{kind}{width} d, a, b", type_name, *by), right)


@given(a=lanes("b32"), b=lanes("b32"), amounts=AMOUNTS)
@FEW
def test_funnel_shifts(a: np.ndarray, b: np.ndarray, amounts: np.ndarray) -> None:
    operands = [("b32", a), ("b32", b), ("u32", amounts)]
    cases = {
        "shf.l.wrap": lambda lo, hi, n: ((hi << 32 | lo) << (n & 31)) >> 32,
        "shf.r.wrap": lambda lo, hi, n: (hi << 32 | lo) >> (n & 31),
        "shf.l.clamp": lambda lo, hi, n: ((hi << 32 | lo) << min(n, 32)) >> 32,
        "shf.r.clamp": lambda lo, hi, n: (hi << 32 | lo) >> min(n, 32),
    }
    for name, function in cases.items():
        got = apply(f"{name}.b32 d, a, b, c", "b32", *operands)
        assert same(got, each(function, np.uint32, a, b, amounts)), name


@given(a=lanes("b32"), b=lanes("b32"), c=lanes("b32"), table=st.integers(0, 255))
@FEW
def test_lop3_follows_its_table(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: int) -> None:
    def row(x: int, y: int, z: int) -> int:
        bits = [(x >> i & 1) << 2 | (y >> i & 1) << 1 | (z >> i & 1) for i in range(32)]
        return sum((table >> index & 1) << i for i, index in enumerate(bits))

    got = apply(f"lop3.b32 d, a, b, c, {table}", "b32", ("b32", a), ("b32", b), ("b32", c))
    assert same(got, each(row, np.uint32, a, b, c))


def extract(value: int, position: int, length: int, width: int, signed: bool) -> int:
    """The pseudocode of bfe in the PTX manual."""
    position, length, msb = position & 255, length & 255, width - 1
    sign = 0
    if signed and length:
        sign = value >> min(position + length - 1, msb) & 1
    result = 0
    for i in range(width):
        inside = i < length and position + i <= msb
        result |= (value >> (position + i) & 1 if inside else sign) << i
    return result


@pytest.mark.parametrize("type_name", ["u32", "s32", "u64", "s64"])
@given(data=st.data(), position=AMOUNTS, length=AMOUNTS)
@FEW
def test_bit_field_extract(
    type_name: str, data: st.DataObject, position: np.ndarray, length: np.ndarray
) -> None:
    a = data.draw(lanes(type_name))
    width, signed = 8 * a.itemsize, type_name[0] == "s"
    got = apply(
        f"bfe.{type_name} d, a, b, c", type_name, (type_name, a), ("u32", position), ("u32", length)
    )
    bits = a.view(f"u{a.itemsize}")
    wanted = each(
        lambda v, p, n: extract(v, p, n, width, signed), a.dtype.type, bits, position, length
    )
    assert same(got, wanted)


@pytest.mark.parametrize("type_name", ["b32", "b64"])
@given(data=st.data(), position=BYTES, length=BYTES)
@FEW
def test_bit_field_insert(
    type_name: str, data: st.DataObject, position: np.ndarray, length: np.ndarray
) -> None:
    a, b = data.draw(lanes(type_name)), data.draw(lanes(type_name))
    width = 8 * a.itemsize

    def insert(x: int, y: int, p: int, n: int) -> int:
        for i in range(n):
            if p + i < width:
                y = y & ~(1 << (p + i)) | (x >> i & 1) << (p + i)
        return y

    got = apply(
        f"bfi.{type_name} d, a, b, c, e", type_name,
        (type_name, a), (type_name, b), ("u32", position), ("u32", length),
    )  # fmt: skip
    assert same(got, each(insert, a.dtype.type, a, b, position, length))


@given(a=lanes("b32"), b=lanes("b32"), c=lanes("b32"))
@FEW
def test_byte_permute(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    def permute(x: int, y: int, selectors: int) -> int:
        pool = (y << 32 | x).to_bytes(8, "little")
        out = []
        for i in range(4):
            selector = selectors >> 4 * i & 15
            byte = pool[selector & 7]
            out.append((255 if byte & 128 else 0) if selector & 8 else byte)
        return int.from_bytes(bytes(out), "little")

    got = apply("prmt.b32 d, a, b, c", "b32", ("b32", a), ("b32", b), ("b32", c))
    assert same(got, each(permute, np.uint32, a, b, c))


@pytest.mark.parametrize("width", [32, 64])
@given(data=st.data())
@FEW
def test_counts(width: int, data: st.DataObject) -> None:
    a = data.draw(lanes(f"b{width}"))
    operand = (f"b{width}", a)
    assert same(apply(f"popc.b{width} d, a", "u32", operand), each(int.bit_count, np.uint32, a))
    zeros = each(lambda x: width - x.bit_length(), np.uint32, a)
    assert same(apply(f"clz.b{width} d, a", "u32", operand), zeros)
    reverse = each(lambda x: int(f"{x:0{width}b}"[::-1], 2), a.dtype.type, a)
    assert same(apply(f"brev.b{width} d, a", f"b{width}", operand), reverse)
    highest = each(lambda x: x.bit_length() - 1, np.uint32, a)
    assert same(apply(f"bfind.u{width} d, a", "u32", operand), highest)
    signed = each(
        lambda x: (~x if x < 0 else x).bit_length() - 1, np.uint32, a.view(f"i{width // 8}")
    )
    assert same(apply(f"bfind.s{width} d, a", "u32", operand), signed)
