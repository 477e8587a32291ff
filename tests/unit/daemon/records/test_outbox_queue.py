"""The outbox's books, where sender and writer meet in the middle of a transaction."""

from __future__ import annotations

from metal_edge.daemon.records.outbox import OutboxEvent
from metal_edge.daemon.records.outbox_queue import Entry, EventQueue


def queue_with(names: str) -> EventQueue:
    queue = EventQueue(100)
    for seq, name in enumerate(names, 1):
        queue.put(OutboxEvent(name, b""), seq)
    return queue


def ids(events: list[OutboxEvent]) -> str:
    return "".join(event.event_id for event in events)


def rows(names: str) -> list[tuple[int, OutboxEvent]]:
    return [(n, OutboxEvent(name, b"")) for n, name in enumerate(names, 1)]


def test_what_is_delivered_while_it_is_being_stored_is_deleted_afterwards() -> None:
    queue = queue_with("ab")
    assert ids(queue.take(1, from_memory=True)) == "a"
    entries, gone = queue.begin_transaction(10)
    queue.deliver(["a"])
    queue.end_transaction(entries, gone, rows=2)
    queue.load(rows("ab"))
    assert ids(queue.take(9, from_memory=False)) == "b"
    assert queue.depth == 1
    assert queue.begin_transaction(10)[1] == ["a"]


def test_a_transaction_that_failed_leaves_nothing_to_delete() -> None:
    queue = queue_with("ab")
    queue.take(1, from_memory=True)
    entries, gone = queue.begin_transaction(10)
    queue.deliver(["a"])
    queue.end_transaction(entries, gone, rows=None)
    assert queue.depth == 1
    entries, gone = queue.begin_transaction(10)
    assert (ids([entry.event for entry in entries]), gone) == ("b", [])


def test_what_is_on_its_way_is_stored_too_and_loaded_only_once() -> None:
    """It left while the disk was in trouble; now the disk is back, and the broker may go."""
    queue = queue_with("abc")
    assert ids(queue.take(2, from_memory=True)) == "ab"
    entries, gone = queue.begin_transaction(10)
    assert ids([entry.event for entry in entries]) == "abc"
    queue.end_transaction(entries, gone, rows=3)
    queue.load(rows("abc"))
    assert ids(queue.take(9, from_memory=False)) == "c"
    queue.give_back(["a", "b", "c"])
    assert ids(queue.take(9, from_memory=False)) == "abc"
    assert queue.depth == 3


def test_the_journal_is_needed_for_what_is_neither_stored_nor_delivered() -> None:
    queue = queue_with("abc")
    queue.begin("d", 4)
    assert queue.safe_seq(4) == 0
    queue.take(2, from_memory=True)
    assert queue.safe_seq(4) == 0, "a is on its way, and nowhere else"
    queue.deliver(["a"])
    assert queue.safe_seq(4) == 1
    entries, gone = queue.begin_transaction(10)
    assert queue.safe_seq(4, entries) == 3
    assert queue.safe_seq(4) == 1, "it has not happened yet"
    queue.end_transaction(entries, gone, rows=2)
    assert queue.safe_seq(4) == 3, "d has only begun"
    queue.put(OutboxEvent("d", b""), 5)
    assert queue.safe_seq(5) == 3
    entries, gone = queue.begin_transaction(10)
    assert queue.safe_seq(5, entries) == 5


def test_rows_that_gave_way_are_not_sent_but_those_on_their_way_may_return() -> None:
    queue = queue_with("abcd")
    entries, gone = queue.begin_transaction(10)
    queue.end_transaction(entries, gone, rows=4)
    queue.load(rows("abcd"))
    queue.take(1, from_memory=False)
    queue.trim(queue.last_taken_row(), 3, dropped=2, rows=2)
    queue.give_back(["a"])
    assert ids(queue.take(9, from_memory=False)) == "ad"
    assert (queue.depth, queue.dropped) == (2, 2)


def test_a_lost_file_makes_everything_in_memory_new_again() -> None:
    queue = queue_with("abcd")
    entries, gone = queue.begin_transaction(3)
    queue.end_transaction(entries, gone, rows=3)
    queue.load(rows("abc"))
    queue.take(1, from_memory=False)
    queue.forget_rows()
    assert queue.depth == 4
    assert ids([entry.event for entry in queue.begin_transaction(10)[0]]) == "abcd"


def test_what_was_dropped_or_came_twice_needs_no_journal() -> None:
    queue = EventQueue(2)
    for seq, name in enumerate("abc", 1):
        queue.put(OutboxEvent(name, b""), seq)
    assert queue.dropped == 1
    assert queue.safe_seq(3) == 1
    queue.put(OutboxEvent("c", b""), 4)
    assert queue.safe_seq(4) == 2
    assert ids(queue.take(9, from_memory=True)) == "c"
    queue.deliver(["c"])
    assert queue.safe_seq(4) == 4


def test_what_is_recovered_during_a_transaction_stays_in_front() -> None:
    queue = queue_with("bc")
    entries, gone = queue.begin_transaction(9)
    queue.recover([Entry(OutboxEvent("a", b""))])
    queue.end_transaction(entries, gone, rows=2)
    assert queue.depth == 3
    assert ids([entry.event for entry in queue.begin_transaction(9)[0]]) == "a"


def test_what_returns_during_a_transaction_is_stored_by_it() -> None:
    queue = queue_with("abcd")
    assert ids(queue.take(2, from_memory=True)) == "ab"
    entries, gone = queue.begin_transaction(3)
    queue.give_back(["a", "b"])
    queue.put(OutboxEvent("e", b""), 5)
    queue.end_transaction(entries, gone, rows=3)
    assert queue.depth == 5
    assert queue.safe_seq(5) == 3
    assert ids([entry.event for entry in queue.begin_transaction(9)[0]]) == "de"
