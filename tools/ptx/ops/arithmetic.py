"""add, sub, mul, mad, fma, div, rem, min, max, abs, neg and the special functions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx import numerics
from tools.ptx.decode import Context, instruction
from tools.ptx.machine import Run
from tools.ptx.ops.elementwise import elementwise, modifiers
from tools.ptx.syntax import Instruction
from tools.ptx.types import TYPES, is_float

Function = Callable[..., Any]

_FLOAT: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": numerics.minimum,
    "max": numerics.maximum,
    "abs": np.abs,
    "neg": np.negative,
}
_INTEGER: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "div": numerics.divide_integers,
    "rem": numerics.remainder,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "neg": np.negative,
}
_FMA = {"f16": numerics.fma16, "f32": numerics.fma32, "f64": numerics.fma64}
_WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
# Only rounding to nearest even is known; .approx and .full divide exactly.
_FLOAT_MODIFIERS = "rn ftz sat approx full NaN noftz"


def _propagating(function: Function) -> Function:
    """min.NaN, max.NaN: NaN wins."""

    def run(a: Any, b: Any) -> Any:
        result = function(a, b)
        return np.where(np.isnan(a) | np.isnan(b), result.dtype.type(np.nan), result)

    return run


def _float_function(function: Function, found: set[str]) -> Function:
    if "NaN" in found:
        function = _propagating(function)
    if "sat" in found:
        function = numerics.saturated(function)
    if "ftz" in found:
        function = numerics.flushed(function)
    return function


def _packed(function: Function, type_name: str) -> Function:
    """A function of floats as a function of packed pairs' bits."""
    if type_name == "f16x2":
        return lambda *bits: numerics.pack_halves(
            function(*[numerics.as_halves(each) for each in bits])
        )
    sixteen = np.uint32(16)

    def pairs(*bits: Any) -> Any:
        low = [numerics.from_bfloat16(each & np.uint32(0xFFFF)) for each in bits]
        high = [numerics.from_bfloat16(each >> sixteen) for each in bits]
        upper = numerics.bfloat16(function(*high)).astype(np.uint32) << sixteen
        return numerics.bfloat16(function(*low)).astype(np.uint32) | upper

    return pairs


def _narrow(function: Function) -> Function:
    """A function of float32 as a function of bf16 bits."""
    return lambda *bits: numerics.bfloat16(
        function(*[numerics.from_bfloat16(each) for each in bits])
    )


@instruction("add", "sub", "div", "rem", "min", "max", "abs", "neg")
def build_simple(context: Context, item: Instruction) -> Run:
    """d = a op b, d = op a; integers wrap, .sat.s32 clamps."""
    name, type_name = item.parts[0], item.parts[-1]
    sources = [type_name] * (1 if name in ("abs", "neg") else 2)
    if is_float(type_name) or type_name in ("f16x2", "bf16", "bf16x2"):
        found = modifiers(item, _FLOAT_MODIFIERS)
        function = _float_function(_FLOAT[name], found)
        if type_name in ("f16x2", "bf16x2"):
            function = _packed(function, type_name)
        elif type_name == "bf16":
            function = _narrow(function)
        return elementwise(context, item, function, sources, type_name)
    found = modifiers(item, "sat")
    function = _INTEGER[name]
    if "sat" in found:
        function = _saturating_s32(function)
    return elementwise(context, item, function, sources, type_name)


def _saturating_s32(function: Function) -> Function:
    limits = np.iinfo(np.int32)

    def clamp(a: Any, b: Any) -> Any:
        wide = function(np.asarray(a, np.int64), np.asarray(b, np.int64))
        return np.clip(wide, limits.min, limits.max).astype(np.int32)

    return clamp


@instruction("mul")
def build_mul(context: Context, item: Instruction) -> Run:
    """mul of floats; mul.lo, .hi, .wide of integers."""
    type_name = item.parts[-1]
    if is_float(type_name) or type_name in ("f16x2", "bf16", "bf16x2"):
        found = modifiers(item, _FLOAT_MODIFIERS)
        function = _float_function(np.multiply, found)
        if type_name in ("f16x2", "bf16x2"):
            function = _packed(function, type_name)
        elif type_name == "bf16":
            function = _narrow(function)
        return elementwise(context, item, function, [type_name] * 2, type_name)
    function, result = _integer_product(item)
    return elementwise(context, item, function, [type_name] * 2, result)


def _integer_product(item: Instruction) -> tuple[Function, str]:
    found = modifiers(item, "lo hi wide")
    type_name = item.parts[-1]
    if "wide" in found:
        wide = TYPES[_WIDE[type_name]]
        return (lambda a, b: np.multiply(a, b, dtype=wide)), _WIDE[type_name]
    if "hi" in found:
        bits = 8 * TYPES[type_name].itemsize
        return (lambda a, b: numerics.high_product(a, b, bits)), type_name
    return np.multiply, type_name


@instruction("mul24", "mad24")
def build_mul24(context: Context, item: Instruction) -> Run:
    """Products of the low 24 bits of 32-bit integers, .lo."""
    modifiers(item, "lo")
    type_name = item.parts[-1]
    shift = TYPES[type_name].type(8)

    def product(a: Any, b: Any) -> Any:
        return (a << shift >> shift) * (b << shift >> shift)

    if item.parts[0] == "mul24":
        return elementwise(context, item, product, [type_name] * 2, type_name)
    return elementwise(context, item, lambda a, b, c: product(a, b) + c, [type_name] * 3, type_name)


@instruction("mad")
def build_mad(context: Context, item: Instruction) -> Run:
    """a * b + c; of floats it is fma."""
    type_name = item.parts[-1]
    if is_float(type_name):
        return _fma(context, item)
    product, result = _integer_product(item)
    return elementwise(
        context, item, lambda a, b, c: product(a, b) + c, [type_name, type_name, result], result
    )


@instruction("fma")
def build_fma(context: Context, item: Instruction) -> Run:
    """a * b + c, rounded once."""
    return _fma(context, item)


def _fma(context: Context, item: Instruction) -> Run:
    type_name = item.parts[-1]
    found = modifiers(item, "rn ftz sat relu")
    scalar = {"f16x2": "f16", "bf16": "f32", "bf16x2": "f32"}.get(type_name, type_name)
    function = _float_function(_FMA[scalar], found)
    if "relu" in found:
        inner = function
        function = lambda a, b, c: _relu(inner(a, b, c))  # noqa: E731
    if type_name in ("f16x2", "bf16x2"):
        function = _packed(function, type_name)
    elif type_name == "bf16":
        function = _narrow(function)
    return elementwise(context, item, function, [type_name] * 3, type_name)


def _relu(value: Any) -> Any:
    return np.where(value < 0, value.dtype.type(0), value)


@instruction("sad")
def build_sad(context: Context, item: Instruction) -> Run:
    """|a - b| + c."""
    modifiers(item, "")
    type_name = item.parts[-1]
    return elementwise(
        context,
        item,
        lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c,
        [type_name] * 3,
        type_name,
    )


def _reciprocal(x: Any) -> Any:
    return (1.0 / x).astype(x.dtype)


def _reciprocal_root(x: Any) -> Any:
    return (1.0 / np.sqrt(x.astype(np.float64))).astype(x.dtype)


def _wide(function: Function) -> Function:
    """A function computed in float64 and rounded to its operand's type."""
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


_UNARY: dict[str, Function] = {
    "rcp": _reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": _reciprocal_root,
    "ex2": _wide(np.exp2),
    "lg2": _wide(np.log2),
    "sin": _wide(np.sin),
    "cos": _wide(np.cos),
    "tanh": _wide(np.tanh),
}


@instruction(*_UNARY)
def build_special_function(context: Context, item: Instruction) -> Run:
    """The special functions, correctly rounded; see the module numerics."""
    type_name = item.parts[-1]
    function = _float_function(_UNARY[item.parts[0]], modifiers(item, "rn approx ftz"))
    if type_name == "f16x2":
        function = _packed(function, type_name)
    elif not is_float(type_name):
        raise ValueError(f"type .{type_name}")
    return elementwise(context, item, function, [type_name], type_name)


@instruction("copysign")
def build_copysign(context: Context, item: Instruction) -> Run:
    """d = the magnitude of b with the sign of a."""
    modifiers(item, "")
    type_name = item.parts[-1]
    return elementwise(context, item, lambda a, b: np.copysign(b, a), [type_name] * 2, type_name)


_TESTS: dict[str, Function] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: ~np.isnan(a),
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).smallest_normal),
    "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).smallest_normal),
}


@instruction("testp")
def build_testp(context: Context, item: Instruction) -> Run:
    """Tests for a class of floating-point numbers."""
    return elementwise(context, item, _TESTS[item.parts[1]], [item.parts[-1]], "pred")


@instruction("dp4a")
def build_dp4a(context: Context, item: Instruction) -> Run:
    """Dot product of four packed bytes, plus c."""
    first, second = item.parts[1], item.parts[2]
    views = [np.uint8 if name == "u32" else np.int8 for name in (first, second)]
    result = "s32" if "s32" in (first, second) else "u32"

    def dot(a: Any, b: Any, c: Any) -> Any:
        x, y = (
            np.ascontiguousarray(np.atleast_1d(value))[:, None].view(view).astype(np.int64)
            for value, view in zip((a, b), views, strict=True)
        )
        return ((x * y).sum(axis=1) + c).astype(TYPES[result])

    return elementwise(context, item, dot, ["b32", "b32", result], result)
