"""Values of IEC 61131-3 variables: strictly typed, and an error where a PLC would wrap or truncate.

Elementary types follow IEC 61131-3 (third edition) table 10. A function block that relies on
overflow, truncation or an index out of range behaves differently on every PLC, so all three stop
the program here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_STRING = 80  # the length of a STRING without one in CODESYS; Siemens allows 254
_BITS = {"SINT": 8, "INT": 16, "DINT": 32, "LINT": 64}
_UNSIGNED = {"USINT": 8, "UINT": 16, "UDINT": 32, "ULINT": 64}
_RANGES = {name: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for name, bits in _BITS.items()} | {
    name: (0, 2**bits - 1) for name, bits in _UNSIGNED.items()
}


class StError(Exception):
    """The program does what a PLC would refuse, or silently get wrong."""


@dataclass(frozen=True, slots=True)
class Type:
    """What a variable may hold, and what it holds at first.

    Attributes:
        name: BOOL, INT, STRING, a user's type, or `ARRAY`.
        initial: makes a first value; structures and arrays are mutable, so each gets its own.
        check: gives the value to store, or raises StError.
    """

    name: str
    initial: Callable[[], Any]
    check: Callable[[Any], Any]


@dataclass(slots=True)
class Structure:
    """One value of a STRUCT type."""

    types: dict[str, Type]
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = {name: kind.initial() for name, kind in self.types.items()}


@dataclass(slots=True)
class Array:
    """One value of an array type, indexed from `low`."""

    low: int
    element: Type
    values: list[Any]

    def offset(self, index: Any) -> int:
        """The place of `index` in `values`.

        Raises:
            StError: out of range.
        """
        if type(index) is not int or not 0 <= index - self.low < len(self.values):
            last = self.low + len(self.values) - 1
            raise StError(f"index {index!r} is outside {self.low}..{last}")
        return index - self.low


def elementary(name: str) -> Type:
    """BOOL, an integer type, LREAL or STRING.

    Raises:
        StError: another type.
    """
    if name == "BOOL":
        return Type(name, lambda: False, _checked(name, lambda v: type(v) is bool))
    if name == "STRING":
        return Type(name, str, _checked(name, _is_string))
    if name == "LREAL":
        return Type(name, float, _checked(name, lambda v: type(v) is float))
    if name in _RANGES:
        low, high = _RANGES[name]
        return Type(name, int, _checked(name, lambda v: type(v) is int and low <= v <= high))
    raise StError(f"type {name} is not known")


def structure(name: str, types: dict[str, Type]) -> Type:
    """A STRUCT; assigning one copies its values."""

    def copy(value: Any) -> Structure:
        if not isinstance(value, Structure) or value.types is not types:
            raise StError(f"{value!r} is no {name}")
        made = Structure(types)
        made.values = {key: types[key].check(item) for key, item in value.values.items()}
        return made

    return Type(name, lambda: Structure(types), copy)


def array(low: int, high: int, element: Type) -> Type:
    """ARRAY[low..high]; assigning whole arrays is not offered."""

    def refuse(value: Any) -> Any:
        raise StError(f"a whole array is assigned ({value!r})")

    def initial() -> Array:
        return Array(low, element, [element.initial() for _ in range(high - low + 1)])

    return Type("ARRAY", initial, refuse)


def _is_string(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_STRING


def _checked(name: str, holds: Callable[[Any], bool]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not holds(value):
            raise StError(f"{value!r} does not fit into {name}")
        return value

    return check
