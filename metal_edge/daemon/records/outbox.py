"""Where audit events wait until the broker has acknowledged them.

An outbox hands each event out, keeps it while it is on its way, and forgets it when it is
delivered. What comes back undelivered goes out again before anything younger: at least once,
oldest first. Every method may be called from any thread, returns at once and never raises.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """One audit event. `event_id` is what a receiver tells copies apart by."""

    event_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """How an outbox is doing.

    Attributes:
        depth: events not delivered yet, those on their way included.
        dropped: events that gave way to younger ones, since the start.
        oldest_age_s: age of the oldest of them; None where it is not known.
        problem: what is wrong with the storage, in a few words.
    """

    depth: int
    dropped: int
    oldest_age_s: float | None = None
    problem: str | None = None


class Outbox(Protocol):
    """See the module."""

    def begin(self, event_id: str, payload: bytes) -> None:
        """Announces an event whose `put` follows; `payload` is what counts if it never comes.

        Called before a decision goes out: if the process dies in between, an outbox that can
        still tells of it.
        """

    def put(self, event_id: str, payload: bytes) -> None:
        """Adds an event; an id that waits already is not added again."""

    def next_batch(self, limit: int) -> Sequence[OutboxEvent]:
        """The oldest events that are not on their way, at most `limit`; now they are."""

    def delivered(self, event_ids: Sequence[str]) -> None:
        """The broker has these."""

    def returned(self, event_ids: Sequence[str]) -> None:
        """These did not arrive, as far as anybody knows."""

    def stats(self) -> OutboxStats:
        """See OutboxStats."""

    def close(self, timeout_s: float) -> None:
        """Brings to safety what can be, within the time; nothing may be called afterwards."""


class MemoryOutbox:
    """Keeps at most `limit` waiting events in memory; then the oldest gives way."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: deque[OutboxEvent] = deque()
        self._on_the_way: dict[str, OutboxEvent] = {}
        self._known: set[str] = set()
        self._dropped = 0

    def begin(self, event_id: str, payload: bytes) -> None:
        """Nothing here outlives the process."""

    def put(self, event_id: str, payload: bytes) -> None:
        """See `Outbox.put`."""
        with self._lock:
            if event_id in self._known:
                return
            if len(self._waiting) >= self._limit:
                self._known.discard(self._waiting.popleft().event_id)
                self._dropped += 1
            self._known.add(event_id)
            self._waiting.append(OutboxEvent(event_id, payload))

    def next_batch(self, limit: int) -> Sequence[OutboxEvent]:
        """See `Outbox.next_batch`."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
            self._on_the_way.update((event.event_id, event) for event in batch)
        return batch

    def delivered(self, event_ids: Sequence[str]) -> None:
        """See `Outbox.delivered`."""
        with self._lock:
            for event_id in event_ids:
                if self._on_the_way.pop(event_id, None) is not None:
                    self._known.discard(event_id)

    def returned(self, event_ids: Sequence[str]) -> None:
        """See `Outbox.returned`. What is on its way comes on top of the limit."""
        with self._lock:
            wanted = set(event_ids)
            # In the order in which they left, whatever order the caller names them in.
            back = [event for key, event in self._on_the_way.items() if key in wanted]
            for event in back:
                del self._on_the_way[event.event_id]
            self._waiting.extendleft(reversed(back))

    def stats(self) -> OutboxStats:
        """See `Outbox.stats`."""
        with self._lock:
            return OutboxStats(len(self._waiting) + len(self._on_the_way), self._dropped)

    def close(self, timeout_s: float) -> None:
        """What is left is lost."""
        del timeout_s
        depth = self.stats().depth
        if depth:
            log.warning("%d events were not delivered and are lost", depth)
