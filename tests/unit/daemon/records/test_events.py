"""From the outbox to the broker: what is in flight, what is refused, what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import pytest

from metal_edge.daemon.records.events import EVENTS_IN_FLIGHT, RETRY_NS, TELL_NS, EventSender
from metal_edge.daemon.records.outbox import MemoryOutbox


@dataclass
class HandClock:
    mono: int = 0

    def mono_ns(self) -> int:
        return self.mono

    def utc_ns(self) -> int:
        return 0


@dataclass
class Wire:
    """Takes messages, gives them numbers, and remembers what each number was."""

    numbers: count[int] = field(default_factory=lambda: count(1))
    sent: dict[int, str] = field(default_factory=dict)
    room: int = 1000

    def publish(self, payload: bytes) -> int | None:
        if len(self.sent) >= self.room:
            return None
        mid = next(self.numbers)
        self.sent[mid] = payload.decode()
        return mid

    def mid_of(self, name: str) -> int:
        return max(mid for mid, sent in self.sent.items() if sent == name)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def outbox() -> MemoryOutbox:
    return MemoryOutbox(100)


@pytest.fixture
def sender(outbox: MemoryOutbox, clock: HandClock) -> EventSender:
    return EventSender(outbox, clock)


def put(outbox: MemoryOutbox, *names: object) -> None:
    for name in names:
        outbox.put(str(name), str(name).encode())


def test_few_are_in_flight_and_more_follow_as_they_are_acknowledged(
    outbox: MemoryOutbox, sender: EventSender
) -> None:
    wire = Wire()
    put(outbox, *range(40))
    sender.pump(wire.publish)
    sender.pump(wire.publish)
    assert list(wire.sent.values()) == [str(n) for n in range(EVENTS_IN_FLIGHT)]
    sender.acknowledged(1, None)
    sender.acknowledged(999, None)  # a heartbeat's
    sender.pump(wire.publish)
    assert len(wire.sent) == EVENTS_IN_FLIGHT + 1
    assert sender.stats().depth == 39


def test_what_was_in_flight_when_the_connection_broke_goes_out_again_in_order(
    outbox: MemoryOutbox, sender: EventSender
) -> None:
    before, after = Wire(room=3), Wire()
    put(outbox, *"abcde")
    sender.pump(before.publish)
    sender.acknowledged(2, None)
    sender.connection_lost()
    sender.pump(after.publish)
    assert list(after.sent.values()) == ["a", "c", "d", "e"]


def test_a_broker_that_refuses_everything_gets_everything_later(
    outbox: MemoryOutbox, sender: EventSender, clock: HandClock
) -> None:
    """Hours of a wrong access rule must not cost one event."""
    wire = Wire()
    put(outbox, *"abc")
    for _ in range(20):
        sender.pump(wire.publish)
        for mid in [*wire.sent]:
            sender.acknowledged(mid, "Not authorized")
        wire.sent.clear()
        sender.pump(wire.publish)
        assert wire.sent == {}, "not so soon again"
        clock.mono += RETRY_NS
    for _ in range(3):
        sender.pump(wire.publish)
        for mid in [*wire.sent]:
            sender.acknowledged(mid, None)
    assert list(dict.fromkeys(wire.sent.values())) == ["a", "b", "c"]
    assert (sender.stats().depth, sender.stats().dropped) == (0, 0)


def test_one_event_that_is_refused_for_itself_does_not_hold_up_the_others(
    outbox: MemoryOutbox, sender: EventSender, clock: HandClock
) -> None:
    wire = Wire()
    put(outbox, "poison", *range(30))
    acknowledged: set[int] = set()
    for _ in range(40):
        sender.pump(wire.publish)
        # The poison last: nothing is accepted after it until others get their chance.
        for mid in sorted(wire.sent.keys() - acknowledged, reverse=True):
            acknowledged.add(mid)
            sender.acknowledged(mid, "Quota exceeded" if wire.sent[mid] == "poison" else None)
        clock.mono += RETRY_NS
    assert list(wire.sent.values()).count("poison") == 3
    assert {*map(str, range(30))} <= set(wire.sent.values())
    assert (sender.stats().depth, sender.stats().dropped) == (0, 1)


def test_a_refused_event_that_gave_way_to_later_ones_slows_down_nobody(clock: HandClock) -> None:
    outbox = MemoryOutbox(20)
    sender = EventSender(outbox, clock)
    put(outbox, "refused")
    before, after = Wire(), Wire()
    sender.pump(before.publish)
    sender.acknowledged(before.mid_of("refused"), "Not authorized")
    sender.connection_lost()
    put(outbox, *range(20))
    for _ in range(2):
        sender.pump(after.publish)
    assert "refused" not in after.sent.values()
    assert len(after.sent) == EVENTS_IN_FLIGHT


def test_an_event_that_is_given_up_is_a_problem_for_a_while(clock: HandClock) -> None:
    outbox = MemoryOutbox(2)
    sender = EventSender(outbox, clock)
    put(outbox, *"ab")
    assert sender.stats().problem is None
    put(outbox, "c")
    clock.mono = 5
    for clock.mono in (6, 5 + TELL_NS):
        assert sender.stats().problem == "events dropped"
    clock.mono = 6 + TELL_NS
    assert (sender.stats().problem, sender.stats().dropped) == (None, 1)
    put(outbox, "d")
    assert sender.stats().problem == "events dropped"


def test_memory_drops_the_oldest_and_knows_an_id_that_waits() -> None:
    outbox = MemoryOutbox(3)
    put(outbox, *"abcbd")
    stats = outbox.stats()
    assert (stats.depth, stats.dropped) == (3, 1)
    assert [event.event_id for event in outbox.next_batch(9)] == ["b", "c", "d"]
    put(outbox, "c")
    assert outbox.next_batch(9) == []
    outbox.delivered(["c"])
    put(outbox, "c")
    assert [event.event_id for event in outbox.next_batch(9)] == ["c"]
