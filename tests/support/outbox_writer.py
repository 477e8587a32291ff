"""A process that uses an outbox as hard as it can, and says on a pipe what it has done.

`p ID`: begin has returned, so a decision may be out. `d ID`: the broker has it, as it were; said
before the outbox is told.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import count
from pathlib import Path

from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.records.outbox_sqlite import SqliteOutbox
from metal_edge.daemon.records.storage import Limits

PAUSE_S = 0.002


def main(path: Path, ring: Path | None, life: str) -> None:
    limits = Limits(max_age_ns=10**15, max_bytes=10**9)
    outbox = SqliteOutbox(path, limits, 100_000, SystemClock(), ring)
    outbox.start()
    for number in count():
        # Some hundred parts a second; without a pause the journal would be full, and say so.
        time.sleep(PAUSE_S)
        name = f"{life}-{number}"
        body = name.encode().ljust(700 + number % 4000, b".")
        outbox.begin(name, body)
        problem = outbox.stats().problem
        if problem is not None:
            say(f"! {problem}")
        say(f"p {name}")
        outbox.put(name, body)
        if number % 3 == 0:
            for event in outbox.next_batch(2):
                say(f"d {event.event_id}")
                outbox.delivered([event.event_id])


def say(text: str) -> None:
    """One write(2), so that a kill leaves whole lines."""
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None, sys.argv[3])
