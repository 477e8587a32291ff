"""What outbox and evidence share: SQLite files that may be damaged, held by one process each."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from metal_edge.daemon.clock import Clock

KEEP_DAMAGED = 3
# A rival's transaction is waited for this long.
BUSY_S = 1.0
_MARKS = "CREATE TABLE marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"


class UnusableError(Exception):
    """A file must not be used: another process has it, or a later version wrote it."""


class CorruptFileError(UnusableError):
    """A file is damaged, or is no SQLite file."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is kept: time of operation, and bytes."""

    max_age_ns: int
    max_bytes: int


class Usage:
    """How long a file has been in use: a clock that never steps, for ages.

    The wall clock would not do: one that steps, as after a boot with an empty RTC battery, would
    make everything decades old. Time during which no process had the file open does not count.
    """

    def __init__(self, database: sqlite3.Connection, clock: Clock) -> None:
        self._clock = clock
        self._opened_ns = clock.mono_ns()
        self._before_ns = read_mark(database, "in_use_ns")

    def now_ns(self) -> int:
        """Only ever grows."""
        return self._before_ns + self._clock.mono_ns() - self._opened_ns

    def save(self, database: sqlite3.Connection) -> None:
        """Within a transaction of the caller's."""
        write_mark(database, "in_use_ns", self.now_ns())


def open_database(path: Path, schema: str, version: int) -> sqlite3.Connection:
    """Opens or creates; checks the whole file, so that damage shows now and not in a year.

    WAL with synchronous=FULL: what COMMIT has returned for survives a power cut.

    Raises:
        CorruptFileError: damaged.
        UnusableError: of a later version; left untouched.
        sqlite3.Error: cannot be opened or written.
    """
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found > version:
            raise UnusableError(f"file of a later version ({found} > {version})")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if found == 0:
            database.executescript(
                f"BEGIN IMMEDIATE; {schema} {_MARKS} PRAGMA user_version = {version}; COMMIT;"
            )
        verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise CorruptFileError(verdict)
    except (sqlite3.Error, UnusableError) as error:
        database.close()
        if is_corrupt(error):
            raise CorruptFileError(str(error)) from error
        raise
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing, on the disk when it ends."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield database
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # some errors have rolled it back already
            database.execute("ROLLBACK")
        raise


def read_mark(database: sqlite3.Connection, name: str) -> int:
    """A named number of the file's; 0 if it was never written."""
    row = database.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
    return 0 if row is None else int(row[0])


def write_mark(database: sqlite3.Connection, name: str, value: int) -> None:
    """Within a transaction of the caller's."""
    database.execute(
        "INSERT INTO marks VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


def hold(path: Path) -> int:
    """Takes the lock that keeps a second process out; the kernel drops it with the process.

    Raises:
        UnusableError: another process has it.
        OSError: the place cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise UnusableError("held by another process") from error
        raise
    return descriptor


def beside(path: Path, ending: str) -> Path:
    """`outbox.sqlite` and `.lock` give `outbox.sqlite.lock`."""
    return path.with_name(path.name + ending)


def put_aside(path: Path, utc_ns: int) -> Path:
    """Renames a damaged SQLite file for whoever can read it; only the last few are kept.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = datetime.fromtimestamp(utc_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = beside(path, f".damaged-{stamp}")
    for suffix in ("", "-wal"):
        if beside(path, suffix).exists():
            beside(path, suffix).replace(beside(aside, suffix))
    beside(path, "-shm").unlink(missing_ok=True)
    found = path.parent.glob(f"{path.name}.damaged-*")
    names = sorted({old.with_name(old.name.removesuffix("-wal")) for old in found})
    for old in names[:-KEEP_DAMAGED]:
        old.unlink(missing_ok=True)
        beside(old, "-wal").unlink(missing_ok=True)
    return aside


def is_corrupt(error: Exception) -> bool:
    """True for damage that trying again does not heal."""
    name = str(getattr(error, "sqlite_errorname", ""))
    return isinstance(error, CorruptFileError) or name.startswith(
        ("SQLITE_CORRUPT", "SQLITE_NOTADB")
    )


def what_is_wrong(error: Exception) -> str:
    """An error of file system or SQLite in a few steady words, for the list of problems."""
    if is_corrupt(error):
        return "damaged file"
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
