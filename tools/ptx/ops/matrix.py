"""Tensor-core instructions: ldmatrix, stmatrix, mma.

A warp holds a tile spread over its lanes. With g = lane // 4 and t = lane % 4, a 32-bit register of
a fragment holds neighbouring columns of row g, beginning at column t * (elements per register).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx import numerics
from tools.ptx.decode import Context, instruction, vector
from tools.ptx.lanes import WARP, Lanes
from tools.ptx.machine import Step
from tools.ptx.ops.collective import aligned
from tools.ptx.syntax import Instruction
from tools.ptx.types import Array

# float16 bits to float64: NumPy's own conversion is several times slower.
_HALF = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float64)


@instruction("ldmatrix")
def build_load_matrix(context: Context, item: Instruction) -> Step:
    """Loads 1, 2 or 4 tiles of 8 x 8 16-bit elements; lane 8 m + r has row r of tile m."""
    count, transposed = _matrix_form(item)
    outs = [context.rows_destination(each, "b32") for each in vector(item.operands[0])]
    address = context.address(item.operands[1])
    shared = context.shared

    def run(lanes: Lanes) -> None:
        used = lanes.ids % WARP < 8 * count
        some = Lanes(lanes.ids[used])
        values = shared.read(some, address(lanes)[used], np.dtype(np.uint16), 8, item)
        tiles = values.reshape(-1, count, 8, 8)
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        packed = np.ascontiguousarray(tiles).view(np.uint32).reshape(-1, count, WARP)
        for place, out in enumerate(outs):
            out[lanes.rows] = packed[:, place]

    return aligned(item, run)


@instruction("stmatrix")
def build_store_matrix(context: Context, item: Instruction) -> Step:
    """Stores what ldmatrix loads."""
    count, transposed = _matrix_form(item)
    reads = [context.rows(each, "b32") for each in vector(item.operands[1])]
    address = context.address(item.operands[0])
    shared = context.shared

    def run(lanes: Lanes) -> None:
        used = lanes.ids % WARP < 8 * count
        some = Lanes(lanes.ids[used])
        packed = np.stack([read(lanes.rows) for read in reads], axis=1)
        tiles = packed.view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            tiles = tiles.swapaxes(2, 3)
        values = np.ascontiguousarray(tiles).reshape(-1, 8)
        shared.write(some, address(lanes)[used], values, item)

    return aligned(item, run)


def _matrix_form(item: Instruction) -> tuple[int, bool]:
    words = [part.split("::")[0] for part in item.parts[1:]]
    known = {"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "b16"}
    if set(words) - known:
        raise ValueError(f"modifier .{sorted(set(words) - known)[0]}")
    count = next(int(word[1:]) for word in words if word in ("x1", "x2", "x4"))
    return count, "trans" in words


def _halves(bits: Array) -> Array:
    return _HALF[np.ascontiguousarray(bits).view(np.uint16)]


def _brains(bits: Array) -> Array:
    wide: Array = numerics.from_bfloat16(np.ascontiguousarray(bits).view(np.uint16))
    return wide.astype(np.float64)


def _tf32(bits: Array) -> Array:
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


def _bytes(dtype: Any) -> Callable[[Array], Array]:
    return lambda bits: np.ascontiguousarray(bits).view(dtype).astype(np.float64)


# Operand type: elements per register, and registers [..., 32] to float64 [..., 32 * elements].
_OPERANDS: dict[str, tuple[int, Callable[[Array], Array]]] = {
    "f16": (2, _halves),
    "bf16": (2, _brains),
    "tf32": (1, _tf32),
    "s8": (4, _bytes(np.int8)),
    "u8": (4, _bytes(np.uint8)),
}


def _tile_a(registers: Array, elements: int, unpack: Callable[[Array], Array]) -> Array:
    """Fragments [registers, warps, 32] to A [warps, 16, K].

    Register r holds rows g + 8 * (r % 2), and the K half r // 2.
    """
    count, warps, _ = registers.shape
    values = unpack(registers).reshape(count // 2, 2, warps, 8, 4 * elements)
    return values.transpose(2, 1, 3, 0, 4).reshape(warps, 16, -1)


def _tile_b(registers: Array, elements: int, unpack: Callable[[Array], Array]) -> Array:
    """Fragments [registers, warps, 32] to B [warps, K, 8]: column g, the K part of register r."""
    count, warps, _ = registers.shape
    values = unpack(registers).reshape(count, warps, 8, 4 * elements)
    return values.transpose(1, 0, 3, 2).reshape(warps, -1, 8)


@instruction("mma")
def build_mma(context: Context, item: Instruction) -> Step:
    """D = A B + C for one 16 x 8 tile per warp.

    Products and their sum are computed in float64 and rounded once with C; tensor cores add in an
    order and with truncations that are not published, so results may differ in the last place.
    """
    shape = re.match(r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.", item.opcode)
    if not shape:
        raise ValueError("shape of mma")
    depth = int(shape[1])
    words = item.parts[item.parts.index("col") + 1 :]
    saturate = "satfinite" in words
    out_type, a_type, b_type, in_type = (word for word in words if word != "satfinite")
    if out_type != in_type or out_type not in ("f32", "s32", "f16"):
        raise ValueError(f"accumulators .{out_type} and .{in_type}")
    elements, unpack_a = _OPERANDS[a_type]
    _, unpack_b = _OPERANDS[b_type]
    d, a, b, c = (vector(operand) for operand in item.operands)
    if len(a) * 4 * elements != 2 * depth or len(b) * 4 * elements != depth:
        raise ValueError("size of the fragments of mma")
    reads_a = [context.rows(each, "b32") for each in a]
    reads_b = [context.rows(each, "b32") for each in b]
    reads_c = [context.rows(each, "b32") for each in c]
    outs = [context.rows_destination(each, "b32") for each in d]

    def run(lanes: Lanes) -> None:
        rows = lanes.rows
        tile_a = _tile_a(np.stack([read(rows) for read in reads_a]), elements, unpack_a)
        tile_b = _tile_b(np.stack([read(rows) for read in reads_b]), elements, unpack_b)
        product = np.matmul(tile_a, tile_b)  # [warps, 16, 8]
        registers = np.stack([read(rows) for read in reads_c])
        result = _accumulate(product, registers, out_type, saturate)
        for place, out in enumerate(outs):
            out[rows] = result[place]

    return aligned(item, run)


def _accumulate(product: Array, registers: Array, type_name: str, saturate: bool) -> Array:
    """Adds the product to the accumulators' fragments [registers, warps, 32], as bits."""
    warps = product.shape[0]
    # rows g and g + 8, columns 2 t and 2 t + 1: [row half, column, warps, lane]
    parts = product.reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(2, 2, warps, WARP)
    if type_name == "f16":
        pairs = numerics.as_halves(registers).astype(np.float64)
        sums = pairs + parts.transpose(0, 2, 3, 1)
        bits: Array = numerics.pack_halves(sums.astype(np.float16))
        return bits
    flat = parts.reshape(4, warps, WARP)
    if type_name == "f32":
        return (registers.view(np.float32) + flat).astype(np.float32).view(np.uint32)
    total = registers.view(np.int32).astype(np.int64) + flat.astype(np.int64)
    if saturate:
        limits = np.iinfo(np.int32)
        total = np.clip(total, limits.min, limits.max)
    return total.astype(np.int32).view(np.uint32)
