"""Operands of PTX instructions: text to data."""

import re
from collections.abc import Callable

from tools.ptx.syntax import (
    Address,
    FloatBits,
    Integer,
    Negated,
    Operand,
    Pair,
    PtxError,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)

Resolve = Callable[[str], Register | None]

_ADDRESS = re.compile(r"\[\s*([%\w$.]+)\s*(?:([+-])\s*(-?\w+)\s*)?\]$")
_FLOAT = re.compile(r"0([fFdD])([0-9a-fA-F]+)$")
_INTEGER = re.compile(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")


def split_operands(text: str) -> list[str]:
    """Splits at the commas outside of braces and brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        parts.append(current.strip())
    return parts


def parse_operand(text: str, resolve: Resolve) -> Operand:  # noqa: PLR0911 - one form each
    """One operand; `resolve` gives the register that a name means here, or None."""
    if text.startswith("{"):
        return Vector(tuple(parse_operand(t, resolve) for t in split_operands(text[1:-1])))
    if text.startswith("["):
        return _address(text, resolve)
    if text.startswith("!"):
        return Negated(parse_operand(text[1:].strip(), resolve))
    if "|" in text:
        first, second = text.split("|")
        return Pair(parse_operand(first.strip(), resolve), parse_operand(second.strip(), resolve))
    if text == "_":
        return Sink()
    register = resolve(text)
    if register is not None:
        return register
    if match := _FLOAT.match(text):
        return FloatBits(int(match[2], 16), 4 if match[1] in "fF" else 8)
    if _INTEGER.match(text):
        return Integer(_integer(text))
    if text.startswith("%"):
        return Special(text)
    if re.fullmatch(r"[A-Za-z_$][\w$]*", text):
        return Symbol(text)
    raise PtxError(f"cannot read the operand {text!r}")


def _integer(text: str) -> int:
    text = text.rstrip("U")
    octal = re.fullmatch(r"(-?)0([0-7]+)", text)
    return int(octal[1] + octal[2], 8) if octal else int(text, 0)


def _address(text: str, resolve: Resolve) -> Address:
    match = _ADDRESS.match(text)
    if not match:
        raise PtxError(f"cannot read the address {text!r}")
    offset = _integer(match[3]) if match[3] else 0
    base = parse_operand(match[1], resolve)
    if not isinstance(base, Register | Symbol | Integer):
        raise PtxError(f"cannot read the address {text!r}")
    return Address(base, -offset if match[2] == "-" else offset)
