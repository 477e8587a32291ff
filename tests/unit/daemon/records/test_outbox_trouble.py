"""The durable outbox on a file that is damaged, locked, of another version, or full."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest
from support.outbox_by_hand import (
    HOUR_NS,
    LIMITS,
    HandClock,
    crashed,
    drain,
    end,
    fill,
    open_outbox,
)

from metal_edge.daemon.records.outbox_file import SCHEMA_VERSION
from metal_edge.daemon.records.outbox_sqlite import WINDOW, SqliteOutbox
from metal_edge.daemon.records.storage import KEEP_DAMAGED


def test_a_file_of_a_later_version_is_left_alone_and_memory_serves(
    path: Path, clock: HandClock
) -> None:
    end(open_outbox(path, clock))
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()
    outbox = open_outbox(path, clock)
    assert "later version" in str(outbox.stats().problem)
    fill(outbox, "ab")
    assert drain(outbox) == [b"a", b"b"]
    end(outbox)
    assert path.read_bytes() == before
    assert list(path.parent.glob("*damaged*")) == []


@pytest.mark.parametrize("damage", ["header", "middle", "text"])
def test_a_damaged_file_is_put_aside_and_a_new_one_begun(
    path: Path, clock: HandClock, damage: str
) -> None:
    first = open_outbox(path, clock)
    for number in range(200):
        first.put(str(number), bytes(1000))
    end(first)
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:64] = bytes(64)
    elif damage == "middle":
        content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    else:
        content[:] = b"this is no database\n" * 1000
    path.write_bytes(content)
    second = open_outbox(path, clock)
    (aside,) = path.parent.glob("outbox.sqlite.damaged-*")
    assert second.stats().problem == "damaged file put aside"
    if damage != "middle":  # what can be opened, SQLite may tidy
        assert aside.read_bytes() == content
    fill(second, "ab")
    second.turn()
    assert second.stats().problem == "damaged file put aside"
    assert drain(second)[-2:] == [b"a", b"b"]
    end(second)
    third = open_outbox(path, clock)
    assert third.stats().problem is None
    end(third)


def test_damage_found_while_running_costs_only_the_rows_that_it_hit(
    path: Path, clock: HandClock
) -> None:
    outbox = open_outbox(path, clock, memory=5000)
    fill(outbox, "abc")
    for number in range(3000):  # more than SQLite's cache holds
        outbox.put(f"x{number}", bytes(3000))
    for _ in range(8):
        outbox.turn()
    taken = [event.event_id for event in outbox.next_batch(2)]
    assert taken == ["a", "b"]
    with path.open("r+b") as file:
        file.seek(100_000)
        file.write(b"\xff" * (path.stat().st_size - 100_000))
    outbox.delivered(["b"])
    outbox.turn()
    assert outbox.stats().problem is not None
    assert len(list(path.parent.glob("outbox.sqlite.damaged-*"))) == 1
    outbox.turn()
    after = open_outbox(crashed(path), clock)  # what memory still had is safe again
    assert [payload[:1] for payload in drain(after)][:2] == [b"a", b"c"]
    end(after)
    outbox.returned(["a"])
    fill(outbox, "d")
    left = [payload[:1] for payload in drain(outbox)]
    assert left[0] == b"a"
    assert b"c" in left
    assert left[-1] == b"d"
    assert outbox.stats().problem == "damaged file put aside"
    end(outbox)


def test_what_can_still_be_read_of_a_damaged_file_is_saved(path: Path, clock: HandClock) -> None:
    first = open_outbox(path, clock, memory=1000)
    names = [f"event-{number:03}" for number in range(300)]
    for name in names:
        first.put(name, json.dumps({"event_id": name, "more": "x" * 2000}).encode())
    end(first)
    content = bytearray(path.read_bytes())
    at = content.index(b'"event-150"')
    content[at - 3000 : at + 3000] = os.urandom(6000)
    path.write_bytes(content)
    path.with_name("outbox.sqlite.ring").unlink()  # which would tell of all of them
    second = open_outbox(path, clock)
    fill(second, "z")
    saved = drain(second)
    assert saved[-1] == b"z"
    kept = [json.loads(payload)["event_id"] for payload in saved[:-1]]
    assert kept == sorted(kept)
    assert set(kept) < set(names)
    assert len(kept) > 280
    assert {names[0], names[-1]} < set(kept)
    end(second)


def test_only_the_last_damaged_files_are_kept(path: Path, clock: HandClock) -> None:
    path.parent.mkdir()
    for _ in range(KEEP_DAMAGED + 2):
        path.write_bytes(b"this is no database\n" * 1000)
        clock.utc += 1_000_000_000
        end(open_outbox(path, clock))
    kept = sorted(path.parent.glob("outbox.sqlite.damaged-*"))
    assert len(kept) == KEEP_DAMAGED
    assert kept[-1].name == "outbox.sqlite.damaged-20231114T221325Z"


def test_two_outboxes_on_one_file_never_write_both(path: Path, clock: HandClock) -> None:
    """The second serves from memory, says why, and takes over when the first is gone."""
    first = open_outbox(path, clock)
    fill(first, "a")
    second = open_outbox(path, clock)
    assert second.stats().problem == "held by another process"
    fill(second, "b")
    assert [event.event_id for event in second.next_batch(9)] == ["b"]
    second.returned(["b"])
    end(first)
    clock.mono += HOUR_NS
    second.turn()
    assert second.stats().problem is None
    assert sorted(drain(second)) == [b"a", b"b"]
    end(second)


def test_a_file_that_somebody_else_has_locked_is_waited_for_in_memory(
    outbox: SqliteOutbox, path: Path, clock: HandClock
) -> None:
    rival = sqlite3.connect(path, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    fill(outbox, "ab")
    outbox.turn()
    assert outbox.stats().problem == "held by another program"
    assert [event.event_id for event in outbox.next_batch(1)] == ["a"]
    outbox.delivered(["a"])
    rival.execute("COMMIT")
    rival.close()
    clock.mono += HOUR_NS
    outbox.turn()
    assert outbox.stats().problem is None
    assert outbox.stats().depth == 1
    assert drain(outbox) == [b"b"]


def test_a_full_journal_is_told_and_its_events_are_stored_all_the_same(
    path: Path, clock: HandClock
) -> None:
    outbox = open_outbox(path, clock, memory=5000)
    for number in range(600):
        outbox.begin(str(number), b"x")
        outbox.put(str(number), b"x")
    assert outbox.stats().problem == "journal full"
    assert len(drain(outbox)) == 600
    fill(outbox, "a")
    assert outbox.stats().problem is None
    after = open_outbox(crashed(path), clock)
    assert drain(after) == [b"a"]
    end(after)
    end(outbox)


def test_a_journal_that_cannot_be_made_is_told_and_sqlite_still_serves(
    path: Path, clock: HandClock
) -> None:
    outbox = SqliteOutbox(path, LIMITS, 100, clock, path.parent / "nowhere" / "ring")
    fill(outbox, "ab")
    assert outbox.stats().problem == "journal: no such file or directory"
    assert drain(outbox) == [b"a", b"b"]
    end(outbox)


def test_what_is_stored_goes_before_what_waits_in_memory_even_in_trouble(
    path: Path, clock: HandClock
) -> None:
    outbox = open_outbox(path, clock, memory=1000)
    for number in range(3 * WINDOW):
        outbox.put(f"stored {number}", b"x")
    outbox.turn()
    rival = sqlite3.connect(path, isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    outbox.put("new", b"x")
    got: list[str] = []
    for _ in range(6):
        outbox.turn()
        batch = [event.event_id for event in outbox.next_batch(2 * WINDOW)]
        outbox.delivered(batch)
        got += batch
    assert got == [*(f"stored {number}" for number in range(3 * WINDOW)), "new"]
    rival.execute("COMMIT")
    rival.close()
    end(outbox)


def test_memory_is_bounded_while_the_disk_is_away(path: Path, clock: HandClock) -> None:
    first = open_outbox(path, clock)
    second = open_outbox(path, clock, memory=3)
    fill(second, "abcde")
    second.turn()
    assert (second.stats().depth, second.stats().dropped) == (3, 2)
    assert [event.event_id for event in second.next_batch(9)] == ["c", "d", "e"]
    end(first)
    end(second)
