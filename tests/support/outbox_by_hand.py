"""A durable outbox whose writer's turns are taken by hand, so that nothing races.

A crash is a copy of its files at that moment: what kill -9 leaves behind is what the kernel has.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from metal_edge.daemon.records.outbox_sqlite import SqliteOutbox
from metal_edge.daemon.records.storage import Limits

HOUR_NS = 3_600_000_000_000
COPIES = count()
LIMITS = Limits(max_age_ns=24 * HOUR_NS, max_bytes=10_000_000)


@dataclass
class HandClock:
    """Moves when told to."""

    mono: int = 0
    utc: int = 1_700_000_000_000_000_000

    def mono_ns(self) -> int:
        return self.mono

    def utc_ns(self) -> int:
        return self.utc


def open_outbox(
    path: Path, clock: HandClock, limits: Limits = LIMITS, memory: int = 100
) -> SqliteOutbox:
    outbox = SqliteOutbox(path, limits, memory, clock)
    outbox.turn()
    outbox.turn()  # a damaged file has been put aside in the first
    return outbox


def end(outbox: SqliteOutbox) -> None:
    """An orderly end: the thread starts only to shut."""
    outbox.start()
    outbox.close(5)


def crashed(path: Path) -> Path:
    """The files as they are now, in a folder of their own."""
    folder = path.parent.with_name(f"after-crash-{next(COPIES)}")
    shutil.copytree(path.parent, folder)
    return folder / path.name


def fill(outbox: SqliteOutbox, names: str) -> None:
    for name in names:
        outbox.begin(name, f"{name} begun".encode())
        outbox.put(name, name.encode())


def drain(outbox: SqliteOutbox, limit: int = 1000) -> list[bytes]:
    """Everything that waits, delivered."""
    got: list[bytes] = []
    while True:
        outbox.turn()
        batch = outbox.next_batch(limit)
        if not batch:
            return got
        got += [event.payload for event in batch]
        outbox.delivered([event.event_id for event in batch])
