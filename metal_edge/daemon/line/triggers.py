"""Triggers from outside: each id once, in a bounded FIFO."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from enum import StrEnum

from metal_edge.daemon.line.bell import Bell
from metal_edge.domain import Trigger

# A trigger id seen again within this many others is refused; older ones are forgotten.
REMEMBERED_IDS = 10_000


class Offer(StrEnum):
    """What became of an offered trigger."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate_trigger"
    OVERFLOW = "queue_overflow"
    CLOSED = "shutting_down"


class TriggerQueue:
    """A bounded FIFO between the broker's thread and the deciding loop.

    Args:
        capacity: triggers waiting at most; one more is an overflow.
        bell: rung for each trigger that waits.
    """

    def __init__(self, capacity: int, bell: Bell) -> None:
        self._capacity = capacity
        self._bell = bell
        self._waiting: deque[Trigger] = deque()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._closed = False
        self._lock = threading.Lock()

    def offer(self, trigger: Trigger) -> Offer:
        """Appends; never blocks. Any id is judged once, even one that overflowed."""
        with self._lock:
            if trigger.trigger_id in self._seen:
                return Offer.DUPLICATE
            self._seen[trigger.trigger_id] = None
            if len(self._seen) > REMEMBERED_IDS:
                self._seen.popitem(last=False)
            if self._closed:
                return Offer.CLOSED
            if len(self._waiting) >= self._capacity:
                return Offer.OVERFLOW
            self._waiting.append(trigger)
        self._bell.ring()
        return Offer.ACCEPTED

    def take(self) -> Trigger | None:
        """The oldest waiting trigger; None when none waits."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> list[Trigger]:
        """Accepts no more, and hands over what was waiting, oldest first."""
        with self._lock:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            return left

    def oldest_deadline_ns(self) -> int | None:
        """Deadline of the trigger that waits longest; None when none waits."""
        with self._lock:
            return self._waiting[0].deadline_mono_ns if self._waiting else None

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting)
