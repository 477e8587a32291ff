"""What we write, Google's decoder reads; what it writes, we read; anything else is refused."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from support.sparkplug_proto import Payload, decode, values

from metal_edge.daemon.mqtt.sparkplug_wire import (
    MAX_COMMAND,
    REBIRTH,
    DataType,
    MalformedPayloadError,
    Metric,
    asks_for_rebirth,
    encode_payload,
)

times = st.none() | st.integers(0, 2**63)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
typed = st.one_of(
    st.tuples(st.just(DataType.INT64), st.none() | st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(DataType.DATE_TIME), st.none() | st.integers(0, 2**63 - 1)),
    st.tuples(st.just(DataType.UINT32), st.none() | st.integers(0, 2**32 - 1)),
    st.tuples(st.just(DataType.DOUBLE), st.none() | st.floats(allow_nan=False)),
    st.tuples(st.just(DataType.BOOLEAN), st.none() | st.booleans()),
    st.tuples(st.just(DataType.STRING), st.none() | names),
)
VALUE_FIELDS = {
    DataType.INT64: "long_value",
    DataType.DATE_TIME: "long_value",
    DataType.UINT32: "int_value",
    DataType.DOUBLE: "double_value",
    DataType.BOOLEAN: "boolean_value",
    DataType.STRING: "string_value",
}


@given(
    st.lists(st.tuples(names, typed, times), max_size=5, unique_by=lambda row: row[0]),
    st.integers(0, 2**63),
    st.none() | st.integers(0, 255),
    st.booleans(),
)
def test_written_here_read_by_protobuf(
    rows: list[tuple[str, tuple[DataType, int | float | str | None], int | None]],
    timestamp: int,
    seq: int | None,
    birth: bool,
) -> None:
    metrics = [Metric(name, kind, value, when) for name, (kind, value), when in rows]
    message = decode(encode_payload(metrics, timestamp_ms=timestamp, seq=seq, birth=birth))
    assert message.timestamp == timestamp
    assert (message.seq if message.HasField("seq") else None) == seq
    expected = {m.name: m.value for m in metrics}
    for metric in metrics:
        if metric.datatype is DataType.INT64 and metric.value is not None:
            expected[metric.name] = int(metric.value) % 2**64  # two's complement
    assert values(message) == expected
    for metric, found in zip(metrics, message.metrics, strict=True):
        assert (found.timestamp if found.HasField("timestamp") else None) == metric.timestamp_ms
        assert found.HasField("datatype") == birth
        assert not birth or found.datatype == metric.datatype
        assert metric.value is None or found.WhichOneof("value") == VALUE_FIELDS[metric.datatype]


commands = st.lists(
    st.tuples(
        st.sampled_from([REBIRTH, "Node Control/Reboot", ""]),
        st.sampled_from(
            [
                ("boolean_value", True),
                ("boolean_value", False),
                ("int_value", 1),
                ("double_value", 1.5),
                ("float_value", 0.5),
                ("bytes_value", b"\x01" * 20),
                ("", None),
            ]
        ),
    ),
    max_size=4,
)


@given(commands, st.none() | st.integers(0, 2**63), st.none() | st.text("ab", max_size=5))
def test_written_by_protobuf_read_here(
    rows: list[tuple[str, tuple[str, object]]], timestamp: int | None, uuid: str | None
) -> None:
    message = Payload()
    if timestamp is not None:
        message.timestamp = timestamp
    if uuid is not None:
        message.uuid = uuid
    for name, (field, value) in rows:
        metric = message.metrics.add(name=name, timestamp=7, datatype=11)
        if field:
            setattr(metric, field, value)
    wanted = (REBIRTH, ("boolean_value", True)) in rows
    assert asks_for_rebirth(message.SerializeToString()) == wanted


rebirth = Payload()
rebirth.metrics.add(name=REBIRTH, boolean_value=True)
REBIRTH_BYTES = rebirth.SerializeToString()


@pytest.mark.parametrize(
    "payload",
    [
        REBIRTH_BYTES[:-1],
        b"\x12" + bytes([REBIRTH_BYTES[1] + 1]) + REBIRTH_BYTES[2:],
        b"\x12\xff\xff\xff\xff\x0f",
        b"\x80" * 11,
        b"\x80",
        b"\x0b",
        b"\x02\x00",
    ],
)
def test_what_protobuf_refuses_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        Payload().ParseFromString(payload)
    with pytest.raises(MalformedPayloadError):
        asks_for_rebirth(payload)


@given(st.binary(max_size=64))
def test_anything_is_a_command_or_malformed(payload: bytes) -> None:
    try:
        wanted = asks_for_rebirth(payload)
    except MalformedPayloadError:
        return
    assert wanted == (payload == REBIRTH_BYTES) or len(payload) > len(REBIRTH_BYTES)


def test_a_giant_is_refused_unread() -> None:
    with pytest.raises(MalformedPayloadError, match="bytes"):
        asks_for_rebirth(REBIRTH_BYTES + b"\x22\x00" * MAX_COMMAND)
