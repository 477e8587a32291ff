"""The outbox's SQLite file. One thread at a time; every method may raise sqlite3.Error."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.records.outbox import OutboxEvent
from metal_edge.daemon.records.storage import (
    Limits,
    Usage,
    open_database,
    read_mark,
    transaction,
    write_mark,
)

SCHEMA_VERSION = 1
# What a row costs besides its payload, roughly: key, index, page overhead.
ROW_OVERHEAD = 200
_LAST_ROW = 2**62
_SALVAGE = "SELECT n, event_id, payload FROM events NOT INDEXED WHERE n > ? ORDER BY n"
SAVE_EVERY_NS = 600_000_000_000
_SCHEMA = """
CREATE TABLE events (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    in_use_ns INTEGER NOT NULL,
    payload BLOB NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A stored event and its place in the order."""

    n: int
    event: OutboxEvent


class OutboxFile:
    """Open file; `rows` and `size` (bytes) are kept by counting."""

    def __init__(self, database: sqlite3.Connection, clock: Clock) -> None:
        self._database = database
        self._usage = Usage(database, clock)
        self.rows, payloads = database.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM events"
        ).fetchone()
        self.size: int = payloads + self.rows * ROW_OVERHEAD
        self._saved_ns = self._usage.now_ns()
        self._oldest_ns: int | None = None
        self._look_at_oldest()

    @classmethod
    def open(cls, path: Path, clock: Clock) -> Self:
        """See `open_database`, whose errors it raises."""
        return cls(open_database(path, _SCHEMA, SCHEMA_VERSION), clock)

    def close(self) -> None:
        """Closes the file, which also empties its write-ahead log."""
        self._database.close()

    def oldest_age_s(self) -> float | None:
        """Age of the oldest event; None if there is none."""
        return None if self._oldest_ns is None else (self._usage.now_ns() - self._oldest_ns) / 1e9

    def journal_seq(self, ring_id: str) -> int:
        """Up to which record that journal has been taken over; 0 for an unknown one."""
        return read_mark(self._database, f"journal {ring_id}")

    def store(
        self,
        events: Sequence[OutboxEvent],
        delivered: Iterable[str],
        journal: tuple[str, int] | None,
    ) -> None:
        """One transaction, on the disk when it returns.

        Args:
            events: to be added; one that is there already stays as it is.
            delivered: ids whose rows go.
            journal: id of the journal, and up to which record it is superfluous afterwards.
        """
        now_ns = self._usage.now_ns()
        rows = size = 0
        with transaction(self._database) as database:
            for event in events:
                new = database.execute(
                    "INSERT INTO events (event_id, in_use_ns, payload) VALUES (?, ?, ?)"
                    " ON CONFLICT (event_id) DO NOTHING",
                    (event.event_id, now_ns, event.payload),
                ).rowcount
                rows += new
                size += new * _size_of(len(event.payload))
            for event_id in delivered:
                row = database.execute(
                    "SELECT n, length(payload) FROM events WHERE event_id = ?", (event_id,)
                ).fetchone()
                if row is not None:
                    database.execute("DELETE FROM events WHERE n = ?", (row[0],))
                    rows, size = rows - 1, size - _size_of(row[1])
            if journal is not None:
                write_mark(database, f"journal {journal[0]}", journal[1])
            self._usage.save(database)
        self._saved_ns = now_ns
        self.rows += rows
        self.size += size
        self._look_at_oldest()

    def trim(self, limits: Limits, above: int) -> tuple[int, int]:
        """Drops the oldest rows that exceed `limits`; those up to number `above` stay.

        Returns:
            How many were dropped, and the number of the last of them.
        """
        now_ns = self._usage.now_ns()
        oldest_allowed_ns = now_ns - limits.max_age_ns
        if self.rows and now_ns - self._saved_ns > SAVE_EVERY_NS:
            self.store((), (), None)  # a long silence must count although nothing is written
        if self.size <= limits.max_bytes and (
            self._oldest_ns is None or self._oldest_ns >= oldest_allowed_ns
        ):
            return 0, 0
        size, last, dropped = self.size, 0, 0
        for n, since_ns, length in self._database.execute(
            "SELECT n, in_use_ns, length(payload) FROM events WHERE n > ? ORDER BY n", (above,)
        ):
            if size <= limits.max_bytes and since_ns >= oldest_allowed_ns:
                break
            size -= _size_of(length)
            last, dropped = n, dropped + 1
        with transaction(self._database) as database:
            database.execute("DELETE FROM events WHERE n > ? AND n <= ?", (above, last))
            self._usage.save(database)
        self.size = size
        self.rows -= dropped
        self._look_at_oldest()
        return dropped, last

    def load(self, after: int, limit: int) -> list[Row]:
        """The oldest rows behind number `after`."""
        rows = self._database.execute(
            "SELECT n, event_id, payload FROM events WHERE n > ? ORDER BY n LIMIT ?",
            (after, limit),
        )
        return [Row(n, OutboxEvent(event_id, payload)) for n, event_id, payload in rows]

    def _look_at_oldest(self) -> None:
        row = self._database.execute("SELECT in_use_ns FROM events ORDER BY n LIMIT 1").fetchone()
        self._oldest_ns = None if row is None else row[0]


def salvaged(path: Path) -> Iterator[OutboxEvent]:
    """What can still be read of a damaged file, oldest first. Raises nothing of SQLite's.

    SQLite has no checksums, so only what still reads as the event that it says it is counts.
    """
    after, gap = 0, 1
    database = sqlite3.connect(path, timeout=0)
    try:
        while after < _LAST_ROW:
            try:
                for n, event_id, payload in database.execute(_SALVAGE, (after,)):
                    after, gap = n, 1
                    if _makes_sense(event_id, payload):
                        yield OutboxEvent(event_id, payload)
                return
            except sqlite3.Error:  # jumps over the damage, in ever longer leaps
                after, gap = after + gap, 2 * gap
    finally:
        database.close()


def _makes_sense(event_id: object, payload: object) -> bool:
    if not isinstance(event_id, str) or not isinstance(payload, bytes):
        return False
    try:
        content = json.loads(payload)
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("event_id") == event_id


def _size_of(payload: int) -> int:
    return payload + ROW_OVERHEAD
