"""Which picture belongs to which part, and what may be deleted: an SQLite file beside the pictures.

A picture that several parts share (a camera that shows the same frame again) lies there once and
goes with the last of them. Ages as in the outbox: time in use, not the wall clock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.records.storage import Limits, Usage, open_database, transaction

SCHEMA_VERSION = 1
KINDS = ("raw", "map", "overlay")
_SCHEMA = """
CREATE TABLE looks (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    in_use_ns INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    part_id TEXT,
    trigger_id TEXT NOT NULL,
    camera_id TEXT NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT NOT NULL,
    t_ns INTEGER NOT NULL,
    raw TEXT, map TEXT, overlay TEXT
);
CREATE INDEX looks_part ON looks (part_id);
CREATE INDEX looks_time ON looks (t_ns);
CREATE TABLE files (
    name TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL,
    uses INTEGER NOT NULL
) WITHOUT ROWID;
"""
_INSERT = "INSERT INTO looks VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OLDEST = "SELECT * FROM looks ORDER BY n LIMIT 1"
_SINCE = "SELECT * FROM looks WHERE t_ns >= ? ORDER BY t_ns DESC, n DESC LIMIT ?"
_OF_PART = "SELECT * FROM looks WHERE t_ns >= ? AND part_id = ? ORDER BY t_ns DESC, n DESC LIMIT ?"
# In place of what a picture without a row cannot say.
UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Look:
    """One camera's look at one part. `raw`, `map`, `overlay` are file names, or None."""

    event_id: str
    part_id: str | None
    trigger_id: str
    camera_id: str
    verdict: str
    reason: str
    t_ns: int
    raw: str | None = None
    map: str | None = None
    overlay: str | None = None

    def names(self) -> list[str]:
        """The files that there are."""
        return [name for name in (self.raw, self.map, self.overlay) if name is not None]


class EvidenceIndex:
    """Open file. One thread at a time; every method may raise sqlite3.Error."""

    def __init__(self, database: sqlite3.Connection, clock: Clock) -> None:
        self._database = database
        self._usage = Usage(database, clock)
        self.size = self._total()

    @classmethod
    def open(cls, path: Path, clock: Clock) -> Self:
        """See `open_database`, whose errors it raises."""
        return cls(open_database(path, _SCHEMA, SCHEMA_VERSION), clock)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def known(self) -> set[str]:
        """Names of all files."""
        return {row[0] for row in self._database.execute("SELECT name FROM files")}

    def add(self, look: Look, sizes: Mapping[str, int]) -> None:
        """A look whose files are there; `sizes` in bytes, by name."""
        with transaction(self._database) as database:
            for name in look.names():
                database.execute(
                    "INSERT INTO files VALUES (?, ?, 1)"
                    " ON CONFLICT (name) DO UPDATE SET uses = uses + 1",
                    (name, sizes[name]),
                )
            database.execute(_INSERT, (self._usage.now_ns(), *astuple(look)))
            self._usage.save(database)
        self.size = self._total()

    def take_oldest(self, limits: Limits) -> list[str] | None:
        """Forgets the oldest look if it is too old or all are too large.

        Returns:
            Files that nobody needs any more, to be deleted; None when nothing exceeds `limits`.
        """
        row = self._database.execute(_OLDEST).fetchone()
        if row is None:
            return None
        too_old = self._usage.now_ns() - row[1] > limits.max_age_ns
        if not too_old and self.size <= limits.max_bytes:
            return None
        with transaction(self._database) as database:
            names = Look(*row[2:]).names()
            for name in names:
                database.execute("UPDATE files SET uses = uses - 1 WHERE name = ?", (name,))
            gone = [
                name
                for name in names
                if database.execute(
                    "DELETE FROM files WHERE name = ? AND uses <= 0", (name,)
                ).rowcount
            ]
            database.execute("DELETE FROM looks WHERE n = ?", (row[0],))
            self._usage.save(database)
        self.size = self._total()
        return gone

    def _total(self) -> int:
        total = self._database.execute("SELECT coalesce(sum(bytes), 0) FROM files").fetchone()[0]
        return int(total)


def find(
    path: Path, *, part_id: str | None = None, since_ns: int = 0, limit: int = 1000
) -> Iterator[Look]:
    """Looks in the index at `path`, newest first; also while a daemon writes there.

    Raises:
        sqlite3.Error: no such file, or it is not an index.
    """
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        if part_id is None:
            rows = database.execute(_SINCE, (since_ns, limit))
        else:
            rows = database.execute(_OF_PART, (since_ns, part_id, limit))
        for row in rows:
            yield Look(*row[2:])
    finally:
        database.close()
