"""What an outbox knows of its events in memory. Pure: no file, no lock, no clock.

The deciding thread may wait while one of these methods runs, so none of them takes longer because
many events wait; the largest has to do with one transaction's.

An event comes in, is stored, is loaded into a window, taken by the sender, and delivered or
returned. While the disk is in trouble the sender takes it before it has been stored.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from metal_edge.daemon.records.outbox import OutboxEvent


@dataclass(slots=True, eq=False)
class Entry:
    """An event in memory.

    Attributes:
        seq: number of the oldest journal record that tells of it; None if there is none.
        queued: it is among those that came in and nobody has taken.
        stored: it is in the file.
        n: its row there, as soon as it has been loaded again; 0 before.
    """

    event: OutboxEvent
    seq: int | None = None
    queued: bool = False
    stored: bool = False
    n: int = 0

    @property
    def event_id(self) -> str:
        """The event's."""
        return self.event.event_id


class EventQueue:
    """The books of one outbox.

    Attributes:
        dropped: events that gave way.
        depth: events neither delivered nor dropped.
    """

    def __init__(self, memory_limit: int) -> None:
        self.dropped = 0
        self._limit = memory_limit
        self._begun: dict[str, int] = {}
        self._incoming: deque[Entry] = deque()
        self._ready: deque[Entry] = deque()
        self._taken: dict[str, Entry] = {}
        self._delivered: set[str] = set()
        self._storing: set[str] = set()
        self._rows = 0
        # Journal records that tell of what is nowhere else, and a heap of them, which also holds
        # some that are not wanted any more.
        self._wanted: set[int] = set()
        self._heap: list[int] = []

    @property
    def depth(self) -> int:
        """See the class."""
        unstored = sum(1 for entry in self._taken.values() if not entry.stored)
        return max(0, self._rows - len(self._delivered) + len(self._incoming) + unstored)

    def begin(self, event_id: str, seq: int) -> None:
        """The journal tells of it in record `seq`; `put` will follow."""
        if event_id not in self._begun:
            self._begun[event_id] = seq
            self._want(seq)

    def put(self, event: OutboxEvent, seq: int | None) -> None:
        """A new event. The oldest that has not been stored gives way to it."""
        # The record of `begin` stays wanted: it is all there is if this one's write failed.
        seq = self._begun.pop(event.event_id, seq)
        self._want(seq)
        self._incoming.append(Entry(event, seq, queued=True))
        if len(self._incoming) > self._limit:
            oldest = self._leave_queue()
            self._wanted.discard(oldest.seq or 0)
            self.dropped += 1

    def recover(self, entries: Iterable[Entry]) -> None:
        """Events of an earlier life: before everything that came since, whatever the limit."""
        self._put_first(list(entries))

    def take(self, limit: int, from_memory: bool) -> list[OutboxEvent]:
        """The oldest events that nobody has taken; not yet stored ones only if `from_memory`."""
        batch: list[OutboxEvent] = []
        while len(batch) < limit:
            if self._ready:
                entry = self._ready.popleft()
            elif self._incoming and from_memory:
                entry = self._leave_queue()
            else:
                break
            taken = self._taken.setdefault(entry.event_id, entry)
            if taken is entry:
                batch.append(entry.event)
            else:  # the same event twice: one of them is enough
                taken.stored |= entry.stored
                self._wanted.discard(entry.seq or 0)
        return batch

    def deliver(self, event_ids: Sequence[str]) -> None:
        """Done with these; their rows go with the next transaction."""
        for event_id in event_ids:
            entry = self._taken.pop(event_id, None)
            if entry is not None:
                self._wanted.discard(entry.seq or 0)
            if entry is not None and (entry.stored or event_id in self._storing):
                self._delivered.add(event_id)

    def give_back(self, event_ids: Sequence[str]) -> None:
        """Back to the front, in the order in which they were taken."""
        wanted = set(event_ids)
        back = [entry for key, entry in self._taken.items() if key in wanted]
        for entry in back:
            del self._taken[entry.event_id]
        self._ready.extendleft(reversed([entry for entry in back if entry.stored]))
        self._put_first([entry for entry in back if not entry.stored])

    def safe_seq(self, last_seq: int, storing: Sequence[Entry] = ()) -> int:
        """Every journal record up to this number is superfluous once `storing` is stored."""
        excepted = {entry.seq for entry in storing}
        passed: list[int] = []
        while self._heap and (self._heap[0] not in self._wanted or self._heap[0] in excepted):
            seq = heapq.heappop(self._heap)
            if seq in self._wanted:
                passed.append(seq)
        safe = self._heap[0] - 1 if self._heap else last_seq
        for seq in passed:
            heapq.heappush(self._heap, seq)
        return safe

    def begin_transaction(self, limit: int) -> tuple[list[Entry], list[str]]:
        """What is to be stored, oldest first, and whose rows are to be deleted."""
        unsent = [entry for entry in self._taken.values() if not entry.stored]
        entries = list(islice(chain(unsent, self._incoming), limit))
        self._storing = {entry.event_id for entry in entries}
        return entries, list(self._delivered)

    def end_transaction(
        self, entries: Sequence[Entry], deleted: Sequence[str], rows: int | None
    ) -> None:
        """It has happened, and the file now has `rows`; or, with None, it has not."""
        storing, self._storing = self._storing, set()
        if rows is None:
            self._delivered -= storing
            return
        for entry in entries:
            entry.stored = True
            self._wanted.discard(entry.seq or 0)
        self._drop_stored(sum(1 for entry in entries if entry.queued))
        self._delivered.difference_update(deleted)
        self._rows = rows

    def room(self, window: int) -> int:
        """How many more rows may be loaded."""
        return max(0, window - len(self._ready))

    def load(self, rows: Iterable[tuple[int, OutboxEvent]]) -> None:
        """Rows in order, none of them loaded before."""
        for n, event in rows:
            taken = self._taken.get(event.event_id)
            if taken is not None:
                taken.n = n
            elif event.event_id not in self._delivered:
                self._ready.append(Entry(event, stored=True, n=n))

    def last_taken_row(self) -> int:
        """Rows up to this one are on their way, so they must stay; 0 if there are none."""
        return max((entry.n for entry in self._taken.values()), default=0)

    def trim(self, above: int, last_row: int, dropped: int, rows: int) -> None:
        """The file has dropped rows behind `above`, up to `last_row`, and now has `rows`."""
        self._ready = deque(e for e in self._ready if not above < e.n <= last_row)
        self.dropped += dropped
        self._rows = rows

    def forget_rows(self) -> None:
        """The file is gone: what memory still holds has not been stored any more."""
        for entry in (*self._ready, *self._taken.values()):
            if entry.stored:
                entry.stored, entry.n, entry.seq = False, 0, None
        self._put_first(list(self._ready))
        self._ready.clear()
        self._delivered.clear()
        self._rows = 0

    def _want(self, seq: int | None) -> None:
        if seq is not None and seq not in self._wanted:
            self._wanted.add(seq)
            heapq.heappush(self._heap, seq)

    def _put_first(self, entries: Sequence[Entry]) -> None:
        for entry in reversed(entries):
            entry.queued = True
            self._want(entry.seq)
            self._incoming.appendleft(entry)

    def _leave_queue(self) -> Entry:
        entry = self._incoming.popleft()
        entry.queued = False
        return entry

    def _drop_stored(self, count: int) -> None:
        """Takes `count` stored entries out of the queue; they are among its first."""
        others: list[Entry] = []
        while count:
            entry = self._leave_queue()
            if entry.stored:
                count -= 1
            else:
                others.append(entry)
        self._put_first(others)
