"""Collectives of a warp: shfl, vote, match, redux, activemask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx.decode import Context, instruction
from tools.ptx.lanes import WARP, Lanes
from tools.ptx.machine import Control, Run, Step
from tools.ptx.report import Kind
from tools.ptx.syntax import Instruction, Operand, Pair
from tools.ptx.types import TYPES, Array

_LANE = np.arange(WARP)
_BIT = np.uint32(1) << np.arange(WARP, dtype=np.uint32)


def collective(context: Context, item: Instruction, run: Run, mask: Operand) -> Step:
    """A step that waits until all lanes of a member mask have come."""
    read = context.read(mask, "u32")
    return Step(
        item,
        run,
        Control.COLLECTIVE,
        members=lambda lanes: np.asarray(read(lanes.index)),
    )


def aligned(item: Instruction, run: Run) -> Step:
    """A step of an `.aligned` collective: all 32 lanes must take part."""
    everyone = np.asarray(np.uint32(0xFFFFFFFF))
    return Step(item, run, Control.COLLECTIVE, members=lambda lanes: everyone)


def _scatter(lanes: Lanes, out: Array, values: Array) -> None:
    """Assigns values [warps, 32] to the register `out` [all warps, 32] of those who take part."""
    if lanes.full:
        out[lanes.rows] = values
    else:
        rows = np.searchsorted(lanes.warps, lanes.ids // WARP)
        out[lanes.ids // WARP, lanes.ids % WARP] = values[rows, lanes.ids % WARP]


def _shuffle_source(mode: str, amount: Array, control: Array) -> tuple[Array, Array]:
    """The lane that each lane reads, and whether it is in range; shfl.sync in the PTX manual."""
    segment = (control >> np.uint32(8)).astype(np.int64) & 31
    clamp = control.astype(np.int64) & 31
    amount = amount.astype(np.int64) & 31
    lowest = _LANE & segment
    highest = lowest | (clamp & ~segment)
    if mode == "up":
        source = _LANE - amount
        valid = source >= highest  # for .up the clamp value is the lowest lane
    elif mode == "down":
        source = _LANE + amount
        valid = source <= highest
    elif mode == "bfly":
        source = _LANE ^ amount
        valid = source <= highest
    else:
        source = lowest | (amount & ~segment)
        valid = source <= highest
    return np.where(valid, source, _LANE), valid


@instruction("shfl")
def build_shuffle(context: Context, item: Instruction) -> Step:
    """shfl.sync: each lane reads a register of another lane."""
    if item.parts[1] != "sync" or item.parts[2] not in ("up", "down", "bfly", "idx"):
        raise ValueError("only shfl.sync")
    if item.parts[3:] != ("b32",):
        raise ValueError("type of shfl")
    mode = item.parts[2]
    target: Operand = item.operands[0]
    predicate = None
    if isinstance(target, Pair):
        predicate = context.rows_destination(target.second, "pred")
        target = target.first
    out = context.rows_destination(target, "b32")
    value = context.rows(item.operands[1], "b32")
    amount, control = context.rows(item.operands[2], "u32"), context.rows(item.operands[3], "u32")

    def run(lanes: Lanes) -> None:
        rows = lanes.rows
        source, valid = _shuffle_source(mode, amount(rows), control(rows))
        if not lanes.full:
            _check_sources(context, item, lanes, source)
        _scatter(lanes, out, np.take_along_axis(value(rows), source, axis=1))
        if predicate is not None:
            _scatter(lanes, predicate, valid)

    return collective(context, item, run, item.operands[4])


def _check_sources(context: Context, item: Instruction, lanes: Lanes, source: Array) -> None:
    here = lanes.mask()
    absent = here & ~np.take_along_axis(here, source, axis=1)
    if absent.any():
        row, lane = (int(axis[0]) for axis in np.nonzero(absent))
        context.machine.violate(
            Kind.DIVERGENCE,
            f"reads lane {int(source[row, lane])}, which takes no part",
            item,
            int(lanes.warps[row]) * WARP + lane,
        )


@instruction("vote")
def build_vote(context: Context, item: Instruction) -> Step:
    """vote.sync: all, any, uni, ballot of a predicate."""
    if item.parts[1] != "sync":
        raise ValueError("only vote.sync")
    mode = item.parts[2]
    out = context.rows_destination(item.operands[0], item.parts[-1])
    predicate = context.rows(item.operands[1], "pred")

    def run(lanes: Lanes) -> None:
        here = lanes.mask()
        yes = predicate(lanes.rows) & here
        if mode == "ballot":
            result = np.where(yes, _BIT, np.uint32(0)).sum(axis=1, dtype=np.uint32)
        elif mode == "any":
            result = yes.any(axis=1)
        elif mode == "all":
            result = (yes == here).all(axis=1)
        else:
            result = ~yes.any(axis=1) | (yes == here).all(axis=1)
        _scatter(lanes, out, np.broadcast_to(result[:, None], here.shape))

    if mode not in ("ballot", "any", "all", "uni"):
        raise ValueError(f"mode .{mode}")
    return collective(context, item, run, item.operands[2])


@instruction("match")
def build_match(context: Context, item: Instruction) -> Step:
    """match.any.sync: the lanes that hold the same value."""
    if item.parts[1:3] != ("any", "sync"):
        raise ValueError("only match.any.sync")
    out = context.rows_destination(item.operands[0], "b32")
    value = context.rows(item.operands[1], item.parts[-1])

    def run(lanes: Lanes) -> None:
        here, values = lanes.mask(), value(lanes.rows)
        same = (values[:, :, None] == values[:, None, :]) & here[:, None, :]
        _scatter(lanes, out, np.where(same, _BIT, np.uint32(0)).sum(axis=2, dtype=np.uint32))

    return collective(context, item, run, item.operands[2])


_REDUCE: dict[str, tuple[Callable[..., Any], int]] = {
    "add": (np.add, 0),
    "and": (np.bitwise_and, -1),
    "or": (np.bitwise_or, 0),
    "xor": (np.bitwise_xor, 0),
}


@instruction("redux")
def build_reduce(context: Context, item: Instruction) -> Step:
    """redux.sync: an integer reduction over the lanes of the mask."""
    operation, type_name = item.parts[2], item.parts[-1]
    dtype = TYPES[type_name]
    if item.parts[1] != "sync" or dtype.kind == "f":
        raise ValueError("only redux.sync of integers")
    limits = np.iinfo(dtype)
    table = {**_REDUCE, "min": (np.minimum, limits.max), "max": (np.maximum, limits.min)}
    function, neutral = table[operation]
    fill = dtype.type(limits.max) if neutral == -1 and dtype.kind == "u" else dtype.type(neutral)
    out = context.rows_destination(item.operands[0], type_name)
    value = context.rows(item.operands[1], type_name)

    def run(lanes: Lanes) -> None:
        here = lanes.mask()
        values = np.where(here, value(lanes.rows), fill)
        reduced = function.reduce(values, axis=1, dtype=dtype)  # type: ignore[attr-defined]
        _scatter(lanes, out, np.broadcast_to(reduced[:, None], here.shape))

    return collective(context, item, run, item.operands[2])


@instruction("activemask")
def build_activemask(context: Context, item: Instruction) -> Run:
    """The lanes that execute this instruction together."""
    out = context.rows_destination(item.operands[0], "b32")

    def run(lanes: Lanes) -> None:
        here = lanes.mask()
        bits = np.where(here, _BIT, np.uint32(0)).sum(axis=1, dtype=np.uint32)
        _scatter(lanes, out, np.broadcast_to(bits[:, None], here.shape))

    return run
