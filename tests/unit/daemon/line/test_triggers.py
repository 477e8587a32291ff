"""The queue of triggers: each id once, in order, bounded."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.line.bell import Bell
from metal_edge.daemon.line.triggers import (
    REMEMBERED_IDS,
    Offer,
    TriggerQueue,
)
from metal_edge.domain import Trigger


def trigger(number: int) -> Trigger:
    return Trigger(f"t{number}", "p", number, number + 10)


@given(st.lists(st.integers(0, 8) | st.none(), max_size=40), st.integers(1, 4))
def test_each_trigger_is_handed_on_once_in_order_or_refused(
    steps: list[int | None], capacity: int
) -> None:
    """A number offers that trigger, None takes one; checked against a plain list."""
    queue = TriggerQueue(capacity, Bell())
    waiting: list[int] = []
    seen: set[int] = set()
    for step in steps:
        if step is None:
            taken = queue.take()
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
    assert queue.take() is None


def test_memory_of_ids_is_bounded() -> None:
    queue = TriggerQueue(1, Bell())
    for number in range(REMEMBERED_IDS + 1):
        queue.offer(trigger(number))
        queue.take()
    assert queue.offer(trigger(1)) is Offer.DUPLICATE
    assert queue.offer(trigger(0)) is Offer.ACCEPTED


def test_a_trigger_rings_the_bell_and_a_ring_before_the_wait_is_not_lost() -> None:
    bell = Bell()
    queue = TriggerQueue(1, bell)
    taken: list[Trigger | None] = []

    def wait_and_take() -> None:
        bell.wait(20)
        taken.append(queue.take())

    waiter = threading.Thread(target=wait_and_take)
    waiter.start()
    queue.offer(trigger(1))
    waiter.join(10)
    assert taken == [trigger(1)]
