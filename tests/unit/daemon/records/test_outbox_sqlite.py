"""The durable outbox on real files. Its writer's turns are taken by hand, so that nothing races.

A crash is a copy of its files at that moment: what kill -9 leaves behind is what the kernel has.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.outbox_by_hand import HOUR_NS, HandClock, crashed, drain, end, fill, open_outbox

from metal_edge.daemon.records.outbox_sqlite import SqliteOutbox
from metal_edge.daemon.records.storage import Limits


def test_what_an_earlier_session_left_comes_first_and_in_order(
    path: Path, clock: HandClock
) -> None:
    first = open_outbox(path, clock)
    fill(first, "abc")
    end(first)
    second = open_outbox(path, clock)
    fill(second, "de")
    assert second.stats().depth == 5
    assert drain(second) == [b"a", b"b", b"c", b"d", b"e"]
    end(second)
    third = open_outbox(path, clock)
    assert third.stats().depth == 0
    assert drain(third) == []
    end(third)


def test_nothing_is_handed_out_before_it_is_stored(outbox: SqliteOutbox) -> None:
    fill(outbox, "a")
    assert outbox.next_batch(10) == []
    outbox.turn()
    assert [event.event_id for event in outbox.next_batch(10)] == ["a"]


def test_what_is_on_its_way_is_not_handed_out_again_until_it_comes_back(
    outbox: SqliteOutbox,
) -> None:
    fill(outbox, "abc")
    outbox.turn()
    assert [event.event_id for event in outbox.next_batch(2)] == ["a", "b"]
    assert [event.event_id for event in outbox.next_batch(2)] == ["c"]
    outbox.returned(["c", "a"])
    assert [event.event_id for event in outbox.next_batch(9)] == ["a", "c"]
    assert outbox.stats().depth == 3


def test_the_same_event_twice_is_one_row(outbox: SqliteOutbox, path: Path) -> None:
    fill(outbox, "aa")
    outbox.turn()
    fill(outbox, "a")
    outbox.turn()
    assert outbox.stats().depth == 1
    assert drain(outbox) == [b"a"]
    assert outbox.stats().depth == 0


@pytest.mark.parametrize("committed", [True, False])
def test_a_crash_loses_nothing_committed_or_not(
    outbox: SqliteOutbox, path: Path, clock: HandClock, committed: bool
) -> None:
    fill(outbox, "abc")
    if committed:
        outbox.turn()
    outbox.begin("d", b"d begun")  # its decision may have gone out; nobody knows
    after = open_outbox(crashed(path), clock)
    assert drain(after) == [b"a", b"b", b"c", b"d begun"]
    end(after)


def test_what_was_delivered_before_the_crash_does_not_come_again(
    outbox: SqliteOutbox, path: Path, clock: HandClock
) -> None:
    fill(outbox, "abc")
    assert drain(outbox) == [b"a", b"b", b"c"]
    fill(outbox, "d")
    after = open_outbox(crashed(path), clock)
    assert drain(after) == [b"d"]
    end(after)


def test_an_event_whose_put_is_slow_survives_although_later_ones_are_stored(
    outbox: SqliteOutbox, path: Path, clock: HandClock
) -> None:
    """Its pictures are still being written when the others are done with."""
    outbox.begin("slow", b"slow begun")
    fill(outbox, "ab")
    outbox.turn()
    after = open_outbox(crashed(path), clock)
    assert sorted(drain(after)) == [b"a", b"b", b"slow begun"]
    end(after)
    outbox.put("slow", b"slow")
    assert drain(outbox) == [b"a", b"b", b"slow"]


def test_the_oldest_give_way_when_the_file_is_too_large(path: Path, clock: HandClock) -> None:
    outbox = open_outbox(path, clock, Limits(HOUR_NS, 5_000))
    for number in range(10):
        outbox.put(str(number), bytes(1000))
    outbox.turn()
    stats = outbox.stats()
    assert (stats.depth, stats.dropped) == (4, 6)
    assert [event.event_id for event in outbox.next_batch(99)] == ["6", "7", "8", "9"]
    end(outbox)


def test_what_is_on_its_way_does_not_give_way(path: Path, clock: HandClock) -> None:
    outbox = open_outbox(path, clock, Limits(HOUR_NS, 5_000))
    for number in range(4):
        outbox.put(str(number), bytes(1000))
    outbox.turn()
    outbox.next_batch(2)
    for number in range(4, 8):
        outbox.put(str(number), bytes(1000))
    outbox.turn()
    outbox.returned(["0", "1"])
    assert [event.event_id for event in outbox.next_batch(99)] == ["0", "1", "6", "7"]
    end(outbox)


def test_old_events_give_way(outbox: SqliteOutbox, clock: HandClock) -> None:
    fill(outbox, "a")
    outbox.turn()
    clock.mono += 20 * HOUR_NS
    fill(outbox, "b")
    outbox.turn()
    assert outbox.stats().oldest_age_s == 20 * 3600
    clock.mono += 5 * HOUR_NS
    outbox.turn()
    assert (outbox.stats().depth, outbox.stats().dropped) == (1, 1)
    assert drain(outbox) == [b"b"]


def test_age_goes_on_in_the_next_session_and_over_a_reboot(path: Path, clock: HandClock) -> None:
    first = open_outbox(path, clock)
    fill(first, "a")
    first.turn()
    clock.mono += 20 * HOUR_NS
    fill(first, "b")
    end(first)
    clock.mono = 5  # a reboot begins it again
    second = open_outbox(path, clock)
    assert second.stats().oldest_age_s == 20 * 3600
    clock.mono += 5 * HOUR_NS
    second.turn()
    assert drain(second) == [b"b"]
    end(second)


def test_a_long_silence_counts_even_if_it_ends_in_a_crash(
    outbox: SqliteOutbox, path: Path, clock: HandClock
) -> None:
    fill(outbox, "a")
    outbox.turn()
    clock.mono += 20 * HOUR_NS
    outbox.turn()
    copy = crashed(path)
    clock.mono = 0
    after = open_outbox(copy, clock)
    assert after.stats().oldest_age_s == 20 * 3600
    end(after)


@pytest.mark.parametrize("years", [-50, 50])
def test_a_wall_clock_that_steps_deletes_nothing(path: Path, clock: HandClock, years: int) -> None:
    first = open_outbox(path, clock)
    fill(first, "abc")
    first.turn()
    clock.utc += years * 8766 * HOUR_NS
    first.turn()
    end(first)
    second = open_outbox(path, clock)
    assert (second.stats().depth, second.stats().dropped) == (3, 0)
    end(second)


def test_more_rows_than_the_window_come_in_order(path: Path, clock: HandClock) -> None:
    outbox = open_outbox(path, clock, memory=1000)
    for number in range(700):
        outbox.put(str(number), str(number).encode())
    outbox.turn()
    assert drain(outbox, limit=16) == [str(number).encode() for number in range(700)]
    assert outbox.stats().depth == 0
    end(outbox)
