"""The part of the Sparkplug B payload that we write and read, in Protocol Buffers' wire format.

Written by hand: five types of value in two messages do not need a generated module, which would
tie the daemon to one major version of the protobuf package. The tests read what this writes, and
write what this reads, with that package. Field numbers: sparkplug_b.proto of Eclipse Tahu, in
chapter 6 of the Sparkplug 3.0 specification; encoding: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# A command is a metric or two; what is larger is not for us.
MAX_COMMAND = 4096

Value = int | float | bool | str | None


class DataType(IntEnum):
    """Those that we use."""

    INT64 = 4
    UINT32 = 7
    DOUBLE = 10
    BOOLEAN = 11
    STRING = 12
    DATE_TIME = 13  # milliseconds since 1970, UTC


# Field of the `value` union that carries each type, and its wire type.
_VALUE_FIELD = {
    DataType.INT64: 11,
    DataType.UINT32: 10,
    DataType.DOUBLE: 13,
    DataType.BOOLEAN: 14,
    DataType.STRING: 15,
    DataType.DATE_TIME: 11,
}


class MalformedPayloadError(ValueError):
    """Not a Sparkplug payload."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One named value. `datatype` goes out in births only, as the specification has it.

    The time is that of the value; a will has none.
    """

    name: str
    datatype: DataType
    value: Value
    timestamp_ms: int | None


def encode_payload(
    metrics: Sequence[Metric], *, timestamp_ms: int | None, seq: int | None, birth: bool
) -> bytes:
    """A Payload message; `seq` and `timestamp_ms` are left out where None (NDEATH)."""
    parts = [] if timestamp_ms is None else [_tag(1, VARINT), _varint(timestamp_ms)]
    parts += [_delimited(2, _metric(metric, birth)) for metric in metrics]
    if seq is not None:
        parts += [_tag(3, VARINT), _varint(seq)]
    return b"".join(parts)


def asks_for_rebirth(payload: bytes) -> bool:
    """Whether an NCMD sets `Node Control/Rebirth` to true.

    Raises:
        MalformedPayloadError: too long, or not a Payload message.
    """
    if len(payload) > MAX_COMMAND:
        raise MalformedPayloadError(f"{len(payload)} bytes")
    for number, value in _fields(payload):
        if number == 2 and isinstance(value, bytes):
            metric = dict(_fields(value))  # of a repeated field the last counts, as in protobuf
            if metric.get(1) == REBIRTH.encode() and metric.get(14) == 1:
                return True
    return False


REBIRTH = "Node Control/Rebirth"


def _metric(metric: Metric, birth: bool) -> bytes:
    parts = [_delimited(1, metric.name.encode())]
    if metric.timestamp_ms is not None:
        parts += [_tag(3, VARINT), _varint(metric.timestamp_ms)]
    if birth:
        parts += [_tag(4, VARINT), _varint(metric.datatype)]
    if metric.value is None:
        parts += [_tag(7, VARINT), _varint(1)]  # is_null
    else:
        parts.append(_value(metric.datatype, metric.value))
    return b"".join(parts)


def _value(datatype: DataType, value: int | float | bool | str) -> bytes:
    field = _VALUE_FIELD[datatype]
    if datatype is DataType.STRING:
        return _delimited(field, str(value).encode())
    if datatype is DataType.DOUBLE:
        return _tag(field, FIXED64) + struct.pack("<d", value)
    return _tag(field, VARINT) + _varint(int(value))


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _delimited(number: int, content: bytes) -> bytes:
    return _tag(number, BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Base 128, low groups first; negative numbers as 64-bit two's complement."""
    value &= 2**64 - 1
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field; eight bytes or four of a fixed one as they are."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, position = _read_varint(message, position)
            yield number, value
            continue
        if wire_type == BYTES:
            size, position = _read_varint(message, position)
        elif wire_type in (FIXED64, FIXED32):
            size = 8 if wire_type == FIXED64 else 4
        else:
            raise MalformedPayloadError(f"wire type {wire_type}")
        if number == 0 or size > len(message) - position:
            raise MalformedPayloadError("a field ends behind its message")
        yield number, message[position : position + size]
        position += size


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
    raise MalformedPayloadError("a varint without an end")
