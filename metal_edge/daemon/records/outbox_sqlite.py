"""The outbox that survives: journal first, SQLite soon after, memory when both fail.

The way of an event:

1. `begin` writes it into the journal, before its decision goes out (microseconds, no sync).
2. `put` writes its final form there and queues it in memory.
3. The writer thread commits the queue to SQLite, many at a time, at most every `COMMIT_EVERY_S`.
4. What is committed is loaded, oldest first, into a small window from which `next_batch` serves.
5. `delivered` rows are deleted with the next commit.

When the disk refuses, or does not answer, `next_batch` serves from the queue itself: the audit
loses its safety net, loudly, and the line goes on.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.records.journal import Journal
from metal_edge.daemon.records.outbox import OutboxEvent, OutboxStats
from metal_edge.daemon.records.outbox_file import OutboxFile, salvaged
from metal_edge.daemon.records.outbox_queue import Entry, EventQueue
from metal_edge.daemon.records.storage import (
    Limits,
    UnusableError,
    beside,
    hold,
    is_corrupt,
    put_aside,
    what_is_wrong,
)

log = logging.getLogger(__name__)

COMMIT_EVERY_S = 0.05
# Without work the writer still looks at ages, and tries a disk that refused.
IDLE_S = 1.0
RETRY_FIRST_NS = 500_000_000
RETRY_LONGEST_NS = 30_000_000_000
# A turn of the writer that takes longer: the disk hangs.
SILENT_NS = 2_000_000_000
# A large file that is being checked takes longer, and is waited for: it holds older events.
CHECKING_NS = 30_000_000_000
OPENING_S = 1.0
BATCH = 500
WINDOW = 64


class SqliteOutbox:
    """See the module and `Outbox`.

    Args:
        path: the SQLite file; its lock and damaged files lie beside it.
        limits: of the file.
        memory_limit: events that may wait in memory for the disk; then the oldest gives way.
        clock: its monotonic side; the wall clock only names damaged files.
        ring: the journal, best in memory (tmpfs), where no disk can hold up a decision; by
            default beside `path`.
    """

    def __init__(
        self,
        path: Path,
        limits: Limits,
        memory_limit: int,
        clock: Clock,
        ring: Path | None = None,
    ) -> None:
        self._path = path
        self._ring = ring or beside(path, ".ring")
        self._limits = limits
        self._clock = clock
        # Guards what stands before the empty line; never held during SQLite's work.
        self._lock = threading.Lock()
        self._queue = EventQueue(memory_limit)
        self._journal: Journal | None = None
        self._journal_problem: str | None = None
        self._trouble: str | None = None
        self._begun_anew = False
        self._more_rows = False
        self._turn_since_ns: int | None = None
        self._oldest_age_s: float | None = None
        self._dropped_told = 0

        self._file: OutboxFile | None = None
        self._salvage: Path | None = None
        self._lock_file: int | None = None
        self._loaded = 0
        self._retry_ns = RETRY_FIRST_NS
        self._next_try_ns = 0
        self._work = threading.Event()
        self._stop = threading.Event()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._found: list[Entry] = []
        self._open_first()

    def start(self) -> None:
        """Starts the writer thread; returns when it has opened the file, or is still at it.

        The whole file is checked, which takes seconds if it is large; parts must not wait for that.
        """
        self._thread.start()
        self._opened.wait(OPENING_S)

    def begin(self, event_id: str, payload: bytes) -> None:
        """See `Outbox.begin`."""
        with self._lock:
            seq = self._write_journal(event_id, payload)
            if seq is not None:
                self._queue.begin(event_id, seq)

    def put(self, event_id: str, payload: bytes) -> None:
        """See `Outbox.put`."""
        with self._lock:
            seq = self._write_journal(event_id, payload)
            self._queue.put(OutboxEvent(event_id, payload), seq)
        self._work.set()

    def next_batch(self, limit: int) -> Sequence[OutboxEvent]:
        """See `Outbox.next_batch`."""
        with self._lock:
            from_memory = self._in_trouble() is not None and not self._more_rows
            return self._queue.take(limit, from_memory)

    def delivered(self, event_ids: Sequence[str]) -> None:
        """See `Outbox.delivered`."""
        with self._lock:
            self._queue.deliver(event_ids)
        self._work.set()

    def returned(self, event_ids: Sequence[str]) -> None:
        """See `Outbox.returned`."""
        with self._lock:
            self._queue.give_back(event_ids)

    def stats(self) -> OutboxStats:
        """See `Outbox.stats`."""
        with self._lock:
            anew = "damaged file put aside" if self._begun_anew else None
            problem = self._in_trouble() or self._journal_problem or anew
            queue = self._queue
            return OutboxStats(queue.depth, queue.dropped, self._oldest_age_s, problem)

    def close(self, timeout_s: float) -> None:
        """See `Outbox.close`."""
        self._stop.set()
        self._work.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.error("outbox: the disk did not answer within %.1f s", timeout_s)
        depth = self.stats().depth
        if depth:
            fate = f"wait in {self._path}" if self._trouble is None else "may be lost"
            log.warning("%d events were not delivered and %s", depth, fate)

    def _write_journal(self, event_id: str, payload: bytes) -> int | None:
        """Under the lock. What cannot be written waits in memory for SQLite like the rest."""
        if self._journal is None:
            return None
        try:
            seq = self._journal.append(event_id, payload)
        except OSError as error:
            self._journal_problem = f"journal: {what_is_wrong(error)}"
            return None
        self._journal_problem = "journal full" if seq is None else None
        return seq

    def _in_trouble(self) -> str | None:
        """Under the lock. A disk that hangs raises nothing."""
        since_ns = self._turn_since_ns
        patience_ns = CHECKING_NS if self._file is None else SILENT_NS
        if since_ns is not None and self._clock.mono_ns() - since_ns > patience_ns:
            return "the disk does not answer"
        return self._trouble

    # What follows belongs to the writer thread.

    def _run(self) -> None:
        self.turn()
        if self._begun_anew:
            self.turn()
        self._opened.set()
        while not self._stop.is_set():
            self._work.wait(IDLE_S)
            self._work.clear()
            self.turn()
            self._stop.wait(COMMIT_EVERY_S)
        self._next_try_ns = 0
        self.turn()
        self._shut()

    def turn(self) -> None:
        """The writer's: whatever is to be done now. Errors end as a problem and a later try."""
        now_ns = self._clock.mono_ns()
        due = now_ns >= self._next_try_ns
        with self._lock:
            self._turn_since_ns = now_ns
        try:
            try:
                if due:
                    file = self._open()
                    self._commit(file)
                    self._trim(file)
            finally:
                self._refill()
        except (sqlite3.Error, OSError, UnusableError) as error:
            self._failed(error)
        except Exception as error:
            log.exception("outbox: unexpected")
            self._failed(error)
        else:
            if due:
                self._worked()
        finally:
            with self._lock:
                self._turn_since_ns = None
                dropped = self._queue.dropped
        if dropped > self._dropped_told:
            log.error("outbox: %d events dropped so far: too old or too many", dropped)
            self._dropped_told = dropped

    def _worked(self) -> None:
        self._next_try_ns, self._retry_ns = 0, RETRY_FIRST_NS
        with self._lock:
            before, self._trouble = self._trouble, None
        if before is not None:
            log.warning("outbox: works again")

    def _failed(self, error: Exception) -> None:
        self._next_try_ns = self._clock.mono_ns() + self._retry_ns
        self._retry_ns = min(2 * self._retry_ns, RETRY_LONGEST_NS)
        trouble = what_is_wrong(error)
        with self._lock:
            before, self._trouble = self._trouble, trouble
        if trouble != before:
            details = " ".join(str(error).split())
            log.error("outbox: %s (%s: %s); events wait in memory", trouble, self._path, details)
        if is_corrupt(error):
            self._put_aside()

    def _open_first(self) -> None:
        """Lock and journal, in the caller's thread: the first decision must find them."""
        try:
            self._lock_file = hold(beside(self._path, ".lock"))
            self._found = self._open_journal()
        except (OSError, UnusableError) as error:
            self._failed(error)
            self._next_try_ns = 0

    def _open(self) -> OutboxFile:
        """Lock, journal, file, as far as they are not open; what the journal tells is queued."""
        if self._lock_file is None:
            self._lock_file = hold(beside(self._path, ".lock"))
        found, self._found = [*self._found, *self._open_journal()], []
        done_seq = 0
        try:
            file = self._file = self._file or OutboxFile.open(self._path, self._clock)
            if self._salvage is not None:
                aside, self._salvage = self._salvage, None
                self._take_over(file, aside)
            if found and self._journal is not None:
                done_seq = file.journal_seq(self._journal.ring_id)
        finally:
            with self._lock:
                self._queue.recover(entry for entry in found if (entry.seq or 0) > done_seq)
        return file

    def _take_over(self, file: OutboxFile, damaged: Path) -> None:
        """What can still be read goes into the new file; nobody else does it later."""
        events = salvaged(damaged)
        count = 0
        while batch := list(islice(events, BATCH)):
            file.store(batch, (), None)
            count += len(batch)
        log.warning("outbox: %d events of the damaged file are saved", count)

    def _open_journal(self) -> list[Entry]:
        """What it holds of an earlier life; the last word on each event counts."""
        if self._journal is not None:
            return []
        try:
            journal = Journal.open(self._ring)
        except OSError as error:
            with self._lock:
                self._journal_problem = f"journal: {what_is_wrong(error)}"
            return []
        found: dict[str, Entry] = {}
        for record in journal.recovered:
            first = found.pop(record.event_id, None)
            seq = record.seq if first is None else first.seq
            found[record.event_id] = Entry(OutboxEvent(record.event_id, record.payload), seq)
        journal.recovered = []
        with self._lock:
            self._journal, self._journal_problem = journal, None
        return list(found.values())

    def _commit(self, file: OutboxFile) -> None:
        """One transaction, with which the journal's records of these events are superfluous."""
        journal = self._journal
        with self._lock:
            entries, delivered = self._queue.begin_transaction(BATCH)
            last_seq = 0 if journal is None else journal.next_seq - 1
            safe_seq = self._queue.safe_seq(last_seq, entries)
        rows = None
        try:
            if entries or delivered:
                mark = None if journal is None else (journal.ring_id, safe_seq)
                file.store([entry.event for entry in entries], delivered, mark)
            rows = file.rows
        finally:
            with self._lock:
                self._queue.end_transaction(entries, delivered, rows)
        if len(entries) == BATCH:
            self._work.set()

    def _trim(self, file: OutboxFile) -> None:
        with self._lock:
            above = self._queue.last_taken_row()
        dropped, last = file.trim(self._limits, above)
        with self._lock:
            self._oldest_age_s = file.oldest_age_s()
            if dropped:
                self._queue.trim(above, last, dropped, file.rows)

    def _refill(self) -> None:
        """Frees what the journal need not keep, and loads the oldest rows for the sender."""
        with self._lock:
            if self._journal is not None:
                self._journal.release(self._queue.safe_seq(self._journal.next_seq - 1))
            room = self._queue.room(WINDOW)
            self._more_rows = self._file is not None and room == 0  # perhaps; the next look tells
        if self._file is None or room == 0:
            return
        rows = self._file.load(self._loaded, room)
        with self._lock:
            self._queue.load((row.n, row.event) for row in rows)
            self._more_rows = len(rows) == room
        if rows:
            self._loaded = rows[-1].n

    def _put_aside(self) -> None:
        """The damaged file stays for whoever can read it; a new one is begun at once."""
        if self._file is not None:
            self._file.close()
        self._file, self._loaded, self._next_try_ns = None, 0, 0
        with self._lock:
            self._queue.forget_rows()
            self._begun_anew = True
        try:
            aside = self._salvage = put_aside(self._path, self._clock.utc_ns())
            log.error("outbox: the damaged file is now %s; a new one is begun", aside)
        except OSError as error:
            log.error("outbox: the damaged file cannot be put aside (%s)", error)
            self._next_try_ns = self._clock.mono_ns() + self._retry_ns

    def _shut(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except sqlite3.Error as error:
            log.error("outbox: %s on closing", what_is_wrong(error))
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
        if self._lock_file is not None:
            os.close(self._lock_file)
