"""Moves and conversions: mov, cvt, cvta."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx import numerics
from tools.ptx.decode import Context, instruction
from tools.ptx.lanes import Lanes
from tools.ptx.machine import Run
from tools.ptx.ops.elementwise import elementwise, modifiers
from tools.ptx.spaces import LOCAL_WINDOW, SHARED_WINDOW
from tools.ptx.syntax import Instruction, Vector
from tools.ptx.types import TYPES, is_float, unsigned

_ROUND: dict[str, Callable[..., Any]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


@instruction("mov")
def build_mov(context: Context, item: Instruction) -> Run:
    """Copies; {a, b} packs and unpacks."""
    modifiers(item, "")
    target, source = item.operands
    type_name = item.parts[-1]
    if isinstance(source, Vector):
        return _pack(context, item, source)
    if isinstance(target, Vector):
        return _unpack(context, item, target)
    out, value = context.write(target, type_name), context.read(source, type_name)

    def run(lanes: Lanes) -> None:
        out[lanes.index] = value(lanes.index)

    return run


def _pack(context: Context, item: Instruction, source: Vector) -> Run:
    size = TYPES[item.parts[-1]].itemsize // len(source.items)
    part = f"b{8 * size}"
    # the result's elements in memory order: element i of every lane, low first
    out = context.write(item.operands[0], item.parts[-1]).view(unsigned(size))
    out = out.reshape(-1, len(source.items))
    reads = [context.read(each, part) for each in source.items]

    def run(lanes: Lanes) -> None:
        values = [read(lanes.index) for read in reads]
        for place, value in enumerate(values):
            out[lanes.index, place] = value

    return run


def _unpack(context: Context, item: Instruction, target: Vector) -> Run:
    size = TYPES[item.parts[-1]].itemsize // len(target.items)
    value = context.read(item.operands[1], item.parts[-1])
    outs = [context.write(each, f"b{8 * size}") for each in target.items]

    def run(lanes: Lanes) -> None:
        index = lanes.index
        whole = np.broadcast_to(value(index), (lanes.count,))
        parts = np.ascontiguousarray(whole)[:, None].view(unsigned(size))
        for place, out in enumerate(outs):
            out[index] = parts[:, place]

    return run


@instruction("cvta")
def build_cvta(context: Context, item: Instruction) -> Run:
    """Addresses between a state space and the generic space, which holds windows of the others."""
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}
    space = next(part.split("::")[0] for part in item.parts[1:] if part != "to")
    type_name = item.parts[-1]
    base = TYPES[type_name].type(window.get(space, 0) % (1 << 8 * TYPES[type_name].itemsize))
    if "to" in item.parts:
        return elementwise(context, item, lambda a: a - base, [type_name], type_name)
    return elementwise(context, item, lambda a: a + base, [type_name], type_name)


def _to_integer(value: Any, target: str) -> Any:
    """Floats that are whole numbers already, clamped to an integer type; NaN becomes 0 or MIN."""
    dtype = TYPES[target]
    limits = np.iinfo(dtype)
    wide = np.asarray(value).astype(np.float64)
    # float64 cannot hold the largest 64-bit integers, so compare before converting
    low = wide <= float(limits.min)
    high = wide >= float(limits.max)
    plain = np.where(low | high | np.isnan(wide), 0.0, wide).astype(dtype)
    result = np.where(low, dtype.type(limits.min), np.where(high, dtype.type(limits.max), plain))
    special = np.asarray(value).dtype == np.float64 or dtype.itemsize == 8
    nan = dtype.type(1 << (8 * dtype.itemsize - 1) if dtype.kind == "u" else limits.min)
    return np.where(np.isnan(wide), nan if special else dtype.type(0), result)


def _towards_zero(value: Any, dtype: Any) -> Any:
    """Floats to a narrower float type, truncated."""
    rounded = value.astype(dtype)
    over = np.abs(rounded.astype(np.float64)) > np.abs(value.astype(np.float64))
    return np.where(over & ~np.isnan(value), np.nextafter(rounded, dtype.type(0)), rounded)


def _float_to_float(source: str, target: str, names: list[str]) -> Callable[..., Any]:
    dtype = TYPES[target]
    integral = [name for name in names if name in _ROUND]
    known = {"rn", "rz", "sat", "ftz", "relu", *_ROUND}
    if set(names) - known:
        raise ValueError(f"modifier .{sorted(set(names) - known)[0]}")

    def convert(value: Any) -> Any:
        if "ftz" in names and source == "f32":
            value = numerics.flush(value)
        if integral:
            value = _ROUND[integral[0]](value)
        narrower = dtype.itemsize < TYPES[source].itemsize
        result = _towards_zero(value, dtype) if "rz" in names and narrower else value.astype(dtype)
        if "relu" in names:
            result = np.where(result < 0, dtype.type(0), result)
        if "ftz" in names and target == "f32":
            result = numerics.flush(result)
        return result

    return numerics.saturated(convert) if "sat" in names else convert


def _integer_to_integer(target: str, saturate: bool) -> Callable[..., Any]:
    dtype = TYPES[target]

    def convert(value: Any) -> Any:
        if saturate:
            limits = np.iinfo(dtype)
            own = np.iinfo(value.dtype)
            value = np.clip(value, max(limits.min, own.min), min(limits.max, own.max))
        return value.astype(dtype)

    return convert


@instruction("cvt")
def build_cvt(context: Context, item: Instruction) -> Run:
    """Conversion; floats to integers clamp, integers to integers wrap unless .sat."""
    target, source = item.parts[-2], item.parts[-1]
    names = list(item.parts[1:-2])
    if target in ("f16x2", "bf16x2"):
        return _packed(context, item, target, names)
    if "bf16" in (target, source):
        return _bfloat16(context, item, names)
    function: Callable[..., Any]
    if "pack" in names:
        raise ValueError("cvt.pack")
    if is_float(source) and is_float(target):
        function = _float_to_float(source, target, names)
    elif is_float(source):
        rounding = [name for name in names if name in _ROUND]
        flush = "ftz" in names
        if len(rounding) != 1 or set(names) - {"ftz", "sat", rounding[0]}:
            raise ValueError("rounding of a conversion to integers")
        function = lambda value: _to_integer(  # noqa: E731
            _ROUND[rounding[0]](numerics.flush(value) if flush else value), target
        )
    elif is_float(target):
        if set(names) - {"rn"}:
            raise ValueError(f"rounding .{names[0]} of integers")
        function = lambda value: value.astype(TYPES[target])  # noqa: E731
    else:
        if set(names) - {"sat"}:
            raise ValueError(f"modifier .{names[0]}")
        function = _integer_to_integer(target, "sat" in names)
    return elementwise(context, item, function, [source], target)


def _packed(context: Context, item: Instruction, target: str, names: list[str]) -> Run:
    """Two float32 to a packed pair: the first operand is the upper half."""
    if target == "f16x2":
        narrow = _float_to_float("f32", "f16", names)
    elif set(names) <= {"rn"}:
        narrow = numerics.bfloat16
    else:
        raise ValueError(f"modifier .{names[0]}")

    def half(value: Any) -> Any:
        return np.asarray(narrow(np.asarray(value))).view(np.uint16).astype(np.uint32)

    def pack(high: Any, low: Any) -> Any:
        return half(high) << np.uint32(16) | half(low)

    return elementwise(context, item, pack, ["f32", "f32"], target)


def _bfloat16(context: Context, item: Instruction, names: list[str]) -> Run:
    target, source = item.parts[-2], item.parts[-1]
    if (target, source) == ("bf16", "f32") and names == ["rn"]:
        return elementwise(context, item, numerics.bfloat16, ["f32"], "bf16")
    if (target, source) == ("f32", "bf16") and not names:
        return elementwise(context, item, numerics.from_bfloat16, ["bf16"], "f32")
    raise ValueError(f"conversion .{target}.{source}")
