"""Comparison and selection: setp, set, selp, slct."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx import numerics
from tools.ptx.decode import Context, Read, instruction
from tools.ptx.lanes import Lanes
from tools.ptx.machine import Run
from tools.ptx.ops.elementwise import elementwise, modifiers
from tools.ptx.syntax import Instruction, Operand, Pair
from tools.ptx.types import TYPES, is_float

_COMPARE: dict[str, Callable[..., Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,  # lo, ls, hi, hs: unsigned
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_COMBINE: dict[str, Callable[..., Any]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def _float_comparison(name: str) -> Callable[..., Any]:
    """Ordered comparisons are false with NaN, those that end in u are true with NaN."""
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    if name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        ordered = _COMPARE[name[:-1]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    return _COMPARE[name]


def _comparison(name: str, type_name: str, flush: bool) -> Callable[..., Any]:
    if not is_float(type_name):
        if type_name in ("f16x2", "bf16", "bf16x2"):
            raise ValueError(f"comparison of .{type_name}")
        return _COMPARE[name]
    compare = _float_comparison(name)
    if flush:
        return lambda a, b: compare(numerics.flush(a), numerics.flush(b))
    return compare


def _parts(item: Instruction) -> tuple[str, str | None, bool]:
    """The comparison, how it combines with a third operand, whether .ftz."""
    names = [part for part in item.parts[1:] if part not in TYPES]
    flush = "ftz" in names
    names = [name for name in names if name != "ftz"]
    if len(names) > 2:
        raise ValueError(f"modifier .{names[2]}")
    return names[0], names[1] if len(names) > 1 else None, flush


def _condition(context: Context, item: Instruction, type_name: str) -> Read:
    """Reads two operands, compares, combines with the third if there is one."""
    name, combination, flush = _parts(item)
    compare = _comparison(name, type_name, flush)
    first = context.read(item.operands[1], type_name)
    second = context.read(item.operands[2], type_name)
    if combination is None:
        return lambda index: compare(first(index), second(index))
    combine = _COMBINE[combination]
    third = context.read(item.operands[3], "pred")
    return lambda index: combine(compare(first(index), second(index)), third(index))


@instruction("setp")
def build_setp(context: Context, item: Instruction) -> Run:
    """p = a op b, optionally combined with a predicate; p|q: q is the opposite comparison."""
    type_name = item.parts[-1]
    name, combination, flush = _parts(item)
    target: Operand = item.operands[0]
    condition = _condition(context, item, type_name)
    if not isinstance(target, Pair):
        out = context.write(target, "pred")

        def run(lanes: Lanes) -> None:
            out[lanes.index] = condition(lanes.index)

        return run
    compare = _comparison(name, type_name, flush)
    first = context.read(item.operands[1], type_name)
    second = context.read(item.operands[2], type_name)
    third = context.read(item.operands[3], "pred") if combination else None
    yes, no = (context.write(side, "pred") for side in (target.first, target.second))

    def run_both(lanes: Lanes) -> None:
        index = lanes.index
        result = compare(first(index), second(index))
        opposite = ~np.asarray(result)
        if third is not None and combination is not None:
            other = third(index)
            combine = _COMBINE[combination]
            result, opposite = combine(result, other), combine(opposite, other)
        yes[index] = result
        no[index] = opposite

    return run_both


@instruction("set")
def build_set(context: Context, item: Instruction) -> Run:
    """d = all ones (1.0 for floats) where the comparison holds, else 0."""
    result, type_name = item.parts[-2], item.parts[-1]
    condition = _condition(context, item, type_name)
    out = context.write(item.operands[0], result)
    true = TYPES[result].type(1) if is_float(result) else ~TYPES[result].type(0)

    def run(lanes: Lanes) -> None:
        out[lanes.index] = np.where(condition(lanes.index), true, TYPES[result].type(0))

    return run


@instruction("selp")
def build_selp(context: Context, item: Instruction) -> Run:
    """d = p ? a : b."""
    modifiers(item, "")
    type_name = item.parts[-1]
    return elementwise(
        context,
        item,
        lambda a, b, p: np.where(p, a, b),
        [type_name, type_name, "pred"],
        type_name,
    )


@instruction("slct")
def build_slct(context: Context, item: Instruction) -> Run:
    """d = c >= 0 ? a : b."""
    value, test = item.parts[-2], item.parts[-1]
    return elementwise(
        context, item, lambda a, b, c: np.where(c >= 0, a, b), [value, value, test], value
    )
