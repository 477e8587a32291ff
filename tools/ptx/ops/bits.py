"""Bits: logic, shifts, fields, permutations, counts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx.decode import Context, instruction
from tools.ptx.machine import Run
from tools.ptx.ops.elementwise import elementwise, modifiers
from tools.ptx.syntax import Instruction, Integer
from tools.ptx.types import TYPES, is_signed

_LOGIC: dict[str, Callable[..., Any]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@instruction("and", "or", "xor")
def build_logic(context: Context, item: Instruction) -> Run:
    """Bitwise, or of predicates."""
    modifiers(item, "")
    type_name = item.parts[-1]
    return elementwise(context, item, _LOGIC[item.parts[0]], [type_name] * 2, type_name)


@instruction("not")
def build_not(context: Context, item: Instruction) -> Run:
    """One's complement."""
    modifiers(item, "")
    return elementwise(context, item, np.invert, [item.parts[-1]], item.parts[-1])


@instruction("cnot")
def build_cnot(context: Context, item: Instruction) -> Run:
    """C's !: 1 for zero, else 0."""
    modifiers(item, "")
    name = item.parts[-1]
    return elementwise(context, item, lambda a: (a == 0).astype(TYPES[name]), [name], name)


@instruction("lop3")
def build_lop3(context: Context, item: Instruction) -> Run:
    """Any logical function of three operands, by its truth table."""
    table = item.operands[4]
    if item.parts[1:] != ("b32",) or not isinstance(table, Integer):
        raise ValueError("only lop3.b32 with a literal table")
    short = Instruction(item.line, item.text, item.parts, item.operands[:4])

    def combine(a: Any, b: Any, c: Any) -> Any:
        result = np.zeros(np.broadcast_shapes(*map(np.shape, (a, b, c))), np.uint32)
        for row in range(8):
            if table.value >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    return elementwise(context, short, combine, ["b32"] * 3, "b32")


@instruction("shl", "shr")
def build_shift(context: Context, item: Instruction) -> Run:
    """Shifts; amounts beyond the width clamp to it: zeros, or the sign for shr.s."""
    modifiers(item, "")
    name, type_name = item.parts[0], item.parts[-1]
    dtype = TYPES[type_name]
    width = 8 * dtype.itemsize

    def shift(value: Any, amount: Any) -> Any:
        beyond = amount >= width
        by = np.minimum(amount, width - 1).astype(dtype)
        shifted = value << by if name == "shl" else value >> by
        if is_signed(type_name) and name == "shr":
            return shifted
        return np.where(beyond, dtype.type(0), shifted)

    return elementwise(context, item, shift, [type_name, "u32"], type_name)


@instruction("shf")
def build_funnel_shift(context: Context, item: Instruction) -> Run:
    """Shifts the 64 bits of two registers and keeps 32 of them."""
    _, direction, mode, type_name = item.parts
    if mode not in ("clamp", "wrap") or type_name != "b32":
        raise ValueError(f"mode .{mode}.{type_name}")

    def shift(low: Any, high: Any, amount: Any) -> Any:
        by = amount & np.uint32(31) if mode == "wrap" else np.minimum(amount, np.uint32(32))
        both = np.asarray(low, np.uint64) | (np.asarray(high, np.uint64) << np.uint64(32))
        by = np.asarray(by, np.uint64)
        if direction == "r":
            return (both >> by).astype(np.uint32)
        # bits 63..32 of the shifted pair
        upper = (both << by) >> np.uint64(32)
        return upper.astype(np.uint32)

    return elementwise(context, item, shift, ["b32", "b32", "u32"], "b32")


def _field_mask(position: Any, length: Any) -> Any:
    """Bits position .. position + length - 1 of 64, for values of at most 255."""
    one = np.uint64(1)
    ones = np.where(length >= 64, ~np.uint64(0), (one << np.minimum(length, np.uint64(63))) - one)
    return np.where(position >= 64, np.uint64(0), ones << np.minimum(position, np.uint64(63)))


@instruction("bfe")
def build_extract(context: Context, item: Instruction) -> Run:
    """Extracts a bit field and extends it by zero or sign."""
    modifiers(item, "")
    type_name = item.parts[-1]
    width = 8 * TYPES[type_name].itemsize
    bits_type = f"u{width}"

    def extract(value: Any, position: Any, length: Any) -> Any:
        start = np.asarray(position, np.uint64) & np.uint64(255)
        count = np.asarray(length, np.uint64) & np.uint64(255)
        wide = np.asarray(value, np.uint64)
        moved = np.where(start >= 64, np.uint64(0), wide >> np.minimum(start, np.uint64(63)))
        field = moved & _field_mask(np.uint64(0), count)
        if is_signed(type_name):
            # The sign is the field's top bit, or the value's where the field reaches beyond it.
            top = np.minimum(start + count - np.uint64(1), np.uint64(width - 1))
            negative = (wide >> np.minimum(top, np.uint64(63))) & np.uint64(1) == 1
            negative &= count > 0
            within = np.minimum(count, np.uint64(width) - np.minimum(start, np.uint64(width)))
            field = np.where(negative, field | ~_field_mask(np.uint64(0), within), field)
        return field.astype(TYPES[bits_type])

    return elementwise(context, item, extract, [bits_type, "u32", "u32"], bits_type)


@instruction("bfi")
def build_insert(context: Context, item: Instruction) -> Run:
    """Inserts a bit field of a into b."""
    modifiers(item, "")
    type_name = item.parts[-1]

    def insert(a: Any, b: Any, position: Any, length: Any) -> Any:
        start = np.asarray(position, np.uint64) & np.uint64(255)
        count = np.asarray(length, np.uint64) & np.uint64(255)
        mask = _field_mask(start, count)
        moved = np.asarray(a, np.uint64) << np.minimum(start, np.uint64(63))
        return ((np.asarray(b, np.uint64) & ~mask) | (moved & mask)).astype(TYPES[type_name])

    return elementwise(context, item, insert, [type_name, type_name, "u32", "u32"], type_name)


@instruction("prmt")
def build_permute(context: Context, item: Instruction) -> Run:
    """Picks four bytes out of eight; bit 3 of a selector spreads the byte's sign instead."""
    if item.parts[1:] != ("b32",):
        raise ValueError("only the generic mode of prmt")

    def permute(a: Any, b: Any, selectors: Any) -> Any:
        pool = np.asarray(a, np.uint64) | (np.asarray(b, np.uint64) << np.uint64(32))
        result: Any = np.uint64(0)
        for place in range(4):
            selector = np.asarray(selectors >> np.uint32(4 * place), np.uint64) & np.uint64(15)
            byte = (pool >> ((selector & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(selector & np.uint64(8), sign, byte)
            result = result | (byte << np.uint64(8 * place))
        return np.asarray(result).astype(np.uint32)

    return elementwise(context, item, permute, ["b32"] * 3, "b32")


@instruction("popc", "clz", "brev", "bfind")
def build_count(context: Context, item: Instruction) -> Run:
    """Number of ones, of leading zeros; bits reversed; the highest significant bit."""
    modifiers(item, "shiftamt" if item.parts[0] == "bfind" else "")
    name, type_name = item.parts[0], item.parts[-1]
    width = 8 * TYPES[type_name].itemsize
    unsigned_name = f"u{width}"

    def bits(value: Any) -> Any:  # [lanes, width], the highest bit first
        column = np.atleast_1d(value)[:, None]
        return (column >> np.arange(width - 1, -1, -1, dtype=TYPES[unsigned_name])) & 1

    def leading_zeros(value: Any) -> Any:
        found = bits(value)
        return np.where(found.any(axis=1), found.argmax(axis=1), width).astype(np.uint32)

    def highest(value: Any) -> Any:
        if is_signed(type_name):
            value = np.where(value >> (width - 1) & 1, ~value, value)
        zeros = leading_zeros(value)
        place = zeros if "shiftamt" in item.parts else np.uint32(width - 1) - zeros
        return np.where(zeros == width, np.uint32(0xFFFFFFFF), place)

    def reverse(value: Any) -> Any:
        weights = np.uint64(1) << np.arange(width, dtype=np.uint64)
        return (bits(value).astype(np.uint64) * weights).sum(axis=1).astype(TYPES[unsigned_name])

    functions = {
        "popc": lambda value: np.bitwise_count(value).astype(np.uint32),
        "clz": leading_zeros,
        "bfind": highest,
        "brev": reverse,
    }
    result = unsigned_name if name == "brev" else "u32"
    return elementwise(context, item, functions[name], [unsigned_name], result)
