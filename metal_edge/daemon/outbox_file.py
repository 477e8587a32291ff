"""The outbox's SQLite file. One thread at a time; every method may raise sqlite3.Error.

Age is counted in hours of operation, on the monotonic clock: the file keeps how long it has been
in use, each event how long that was when it came. A wall clock that steps, as after a boot with
an empty RTC battery, would otherwise make every event decades old and delete it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.outbox import OutboxEvent

SCHEMA_VERSION = 1
# What a row costs besides its payload, roughly: key, index, page overhead.
ROW_OVERHEAD = 200
_BUSY_S = 1.0
_SCHEMA = """
CREATE TABLE events (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL UNIQUE,
    in_use_ns INTEGER NOT NULL,
    payload BLOB NOT NULL
);
CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class UnusableError(Exception):
    """The file must not be used: another process has it, or a later version wrote it."""


class CorruptFileError(UnusableError):
    """The file is damaged, or is no SQLite file."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is kept: hours of operation, and bytes of rows."""

    max_age_ns: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """A stored event and its place in the order."""

    n: int
    event: OutboxEvent


class OutboxFile:
    """Open file; `rows`, `size` and `oldest_ns` are as of the last `store`."""

    def __init__(self, database: sqlite3.Connection, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._opened_ns = clock.mono_ns()
        self._used_before_ns = self._mark("in_use_ns")
        self.rows, payloads = database.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM events"
        ).fetchone()
        self.size: int = payloads + self.rows * ROW_OVERHEAD
        self.oldest_ns: int | None = None
        self._look_at_oldest()

    @classmethod
    def open(cls, path: Path, clock: Clock) -> Self:
        """Opens or creates; checks the whole file, so that damage shows now and not in a year.

        Raises:
            CorruptFileError: damaged.
            UnusableError: of a later version; left untouched.
            sqlite3.Error: cannot be opened or written.
        """
        database = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise UnusableError(f"file of a later version ({version} > {SCHEMA_VERSION})")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            if version == 0:
                database.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
            verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise CorruptFileError(verdict)
            return cls(database, clock)
        except (sqlite3.Error, UnusableError) as error:
            database.close()
            if is_corrupt(error):
                raise CorruptFileError(str(error)) from error
            raise

    def close(self) -> None:
        """Closes the file, which also empties its write-ahead log."""
        self._database.close()

    def in_use_ns(self) -> int:
        """How long the file has been in use; only ever grows."""
        return self._used_before_ns + self._clock.mono_ns() - self._opened_ns

    def oldest_age_s(self) -> float | None:
        """Age of the oldest event; None if there is none."""
        return None if self.oldest_ns is None else (self.in_use_ns() - self.oldest_ns) / 1e9

    def journal_seq(self, ring_id: str) -> int:
        """Up to which record that journal has been taken over; 0 for an unknown one."""
        return self._mark(f"journal {ring_id}")

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
        now_ns = self.in_use_ns()
        rows = size = 0
        with self._transaction() as database:
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
            marks = [("in_use_ns", now_ns)]
            if journal is not None:
                marks.append((f"journal {journal[0]}", journal[1]))
            database.executemany(
                "INSERT INTO marks VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                marks,
            )
        self.rows += rows
        self.size += size
        self._look_at_oldest()

    def trim(self, limits: Limits, above: int) -> tuple[int, int]:
        """Drops the oldest rows that exceed `limits`; those up to number `above` stay.

        Returns:
            How many were dropped, and the number of the last of them.
        """
        oldest_allowed_ns = self.in_use_ns() - limits.max_age_ns
        if self.size <= limits.max_bytes and (self.oldest_ns or 0) >= oldest_allowed_ns:
            return 0, 0
        size, last, dropped = self.size, 0, 0
        for n, since_ns, length in self._database.execute(
            "SELECT n, in_use_ns, length(payload) FROM events WHERE n > ? ORDER BY n", (above,)
        ):
            if size <= limits.max_bytes and since_ns >= oldest_allowed_ns:
                break
            size -= _size_of(length)
            last, dropped = n, dropped + 1
        with self._transaction() as database:
            database.execute("DELETE FROM events WHERE n > ? AND n <= ?", (above, last))
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

    def _mark(self, name: str) -> int:
        row = self._database.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])

    def _look_at_oldest(self) -> None:
        row = self._database.execute("SELECT in_use_ns FROM events ORDER BY n LIMIT 1").fetchone()
        self.oldest_ns = None if row is None else row[0]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # some errors have rolled it back already
                self._database.execute("ROLLBACK")
            raise


def _size_of(payload: int) -> int:
    return payload + ROW_OVERHEAD


def is_corrupt(error: Exception) -> bool:
    """True for damage that trying again does not heal."""
    name = str(getattr(error, "sqlite_errorname", ""))
    return isinstance(error, CorruptFileError) or name.startswith(
        ("SQLITE_CORRUPT", "SQLITE_NOTADB")
    )


def what_is_wrong(error: Exception) -> str:
    """An error of file system or SQLite in a few steady words, for the list of problems."""
    known = {
        "SQLITE_FULL": "disk full",
        "SQLITE_READONLY": "read-only",
        "SQLITE_CANTOPEN": "cannot be opened",
        "SQLITE_BUSY": "held by another program",
        "SQLITE_IOERR": "disk error",
    }
    name = str(getattr(error, "sqlite_errorname", ""))
    for prefix, words in known.items():
        if name.startswith(prefix):
            return words
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
