"""Commands from outside, well-formed or not, and the queue behind them."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.triggers import (
    MAX_PAYLOAD,
    REMEMBERED_IDS,
    CommandError,
    Offer,
    TriggerQueue,
    parse_trigger,
)
from metal_edge.domain import Trigger

texts = st.text("aZ0_.:-/\n\0 \u00e9\U0010ffff", max_size=70)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
commands = st.fixed_dictionaries(
    {},
    optional={
        "trigger_id": json_values | st.just("t1"),
        "part_id": json_values | st.just("p1"),
        "deadline_ms": json_values | st.floats(0, 1e5),
        "more": json_values,
    },
).map(lambda fields: json.dumps(fields).encode())


@given(st.binary(max_size=64) | commands)
def test_any_payload_is_a_bounded_trigger_or_a_command_error(payload: bytes) -> None:
    try:
        trigger = parse_trigger(payload, 1000, 500)
    except CommandError as error:
        assert 0 < len(str(error)) < 120
        return
    assert 1 <= len(trigger.trigger_id) <= 64
    assert trigger.part_id is not None and "/" not in trigger.part_id
    assert 0 <= trigger.deadline_mono_ns - trigger.t_mono_ns <= 60_000_000_000


def test_the_deadline_counts_from_arrival() -> None:
    with_own = b'{"trigger_id": "t", "part_id": "p", "deadline_ms": 20.5}'
    assert parse_trigger(with_own, 7, 500).deadline_mono_ns == 7 + 20_500_000
    assert parse_trigger(b'{"trigger_id": "t", "part_id": "p"}', 7, 500) == Trigger(
        "t", "p", 7, 500_000_007
    )


@pytest.mark.parametrize(
    "payload",
    [
        b'{"trigger_id": "t", "part_id": "p", "deadline_ms": true}',
        b'{"trigger_id": "t", "part_id": "p", "deadline_ms": -1}',
        b'{"trigger_id": "t", "part_id": "p", "deadline_ms": 1e999}',
        b'{"trigger_id": "t", "part_id": "p", "deadline_ms": 60001}',
        b'{"trigger_id": "t\\n", "part_id": "p"}',
        b'{"trigger_id": "", "part_id": "p"}',
        b'{"trigger_id": "' + b"t" * 65 + b'", "part_id": "p"}',
        b'{"trigger_id": "t", "part_id": "p"}' + b" " * MAX_PAYLOAD,
        b"[" * MAX_PAYLOAD,
        b"[]",
    ],
)
def test_refused(payload: bytes) -> None:
    with pytest.raises(CommandError):
        parse_trigger(payload, 0, 500)


def trigger(number: int) -> Trigger:
    return Trigger(f"t{number}", "p", number, number + 10)


@given(st.lists(st.integers(0, 8) | st.none(), max_size=40), st.integers(1, 4))
def test_each_trigger_is_handed_on_once_in_order_or_refused(
    steps: list[int | None], capacity: int
) -> None:
    """A number offers that trigger, None takes one; checked against a plain list."""
    queue = TriggerQueue(capacity)
    waiting: list[int] = []
    seen: set[int] = set()
    for step in steps:
        if step is None:
            taken = queue.take(0)
            assert taken == (trigger(waiting.pop(0)) if waiting else None)
            continue
        offer = queue.offer(trigger(step))
        if step in seen:
            assert offer is Offer.DUPLICATE
        elif len(waiting) == capacity:
            assert offer is Offer.OVERFLOW
        else:
            assert offer is Offer.ACCEPTED
            waiting.append(step)
        seen.add(step)
    assert queue.oldest_deadline_ns() == (waiting[0] + 10 if waiting else None)
    assert queue.close() == [trigger(number) for number in waiting]
    assert queue.offer(trigger(99)) is Offer.CLOSED
    assert queue.take(0) is None


def test_memory_of_ids_is_bounded() -> None:
    queue = TriggerQueue(1)
    for number in range(REMEMBERED_IDS + 1):
        queue.offer(trigger(number))
        queue.take(0)
    assert queue.offer(trigger(1)) is Offer.DUPLICATE
    assert queue.offer(trigger(0)) is Offer.ACCEPTED


def test_take_wakes_up_for_a_trigger() -> None:
    queue = TriggerQueue(1)
    taken: list[Trigger | None] = []
    waiter = threading.Thread(target=lambda: taken.append(queue.take(20)))
    waiter.start()
    queue.offer(trigger(1))
    waiter.join(10)
    assert taken == [trigger(1)]
