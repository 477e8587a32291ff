"""Brings audit events from the outbox to the broker, a few at a time. No I/O of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.records.outbox import Outbox, OutboxStats

log = logging.getLogger(__name__)

EVENTS_IN_FLIGHT = 16
# After a refusal: time for somebody to mend the broker's rules.
RETRY_NS = 5_000_000_000
# Two, so that an event that is refused for itself can be told from a broker that refuses all.
IN_DOUBT = 2
REFUSALS = 3
# After an event had to be given up, the problem is told for so long.
TELL_NS = 10_000_000_000


@dataclass(slots=True)
class _Refused:
    """How often an event was refused, and how many others had been accepted before."""

    times: int
    accepted_before: int


class EventSender:
    """Sends what waits and matches acknowledgements to it. One thread, the deciding loop.

    A refused event is kept and sent again: whoever has the rights wrong finds every event in the
    end. Only one that is refused three times while others are accepted is dropped, and counted,
    or it would hold up all that follow.
    """

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock
        self._in_flight: dict[int, str] = {}
        self._refused: dict[str, _Refused] = {}
        # Returned together, since one by one they would come out in reverse.
        self._to_return: list[str] = []
        self._accepted = 0
        self._not_before_ns = 0
        self._dropped = 0
        self._told = 0
        self._told_until_ns = 0

    def pump(self, publish: Callable[[bytes], int | None]) -> None:
        """Hands events to `publish` until enough are in flight.

        Args:
            publish: gives the message's id, or None when the connection is gone.
        """
        if self._clock.mono_ns() < self._not_before_ns:
            return
        self._return()
        limit = IN_DOUBT if self._refused else EVENTS_IN_FLIGHT
        room = max(0, limit - len(self._in_flight))
        batch = self._outbox.next_batch(room)
        if room:
            self._forget({*self._in_flight.values(), *(event.event_id for event in batch)})
        for number, event in enumerate(batch):
            mid = publish(event.payload)
            if mid is None:
                self._outbox.returned([later.event_id for later in batch[number:]])
                return
            self._in_flight[mid] = event.event_id

    def acknowledged(self, mid: int, refusal: str | None) -> None:
        """The broker's word on one message; those that are no events are ignored."""
        event_id = self._in_flight.pop(mid, None)
        if event_id is None:
            return
        if refusal is None:
            self._accepted += 1
            self._not_before_ns = 0
            self._refused.pop(event_id, None)
            self._outbox.delivered([event_id])
            return
        refused = self._refused.setdefault(event_id, _Refused(0, self._accepted))
        refused.times += 1
        if refused.times >= REFUSALS and self._accepted > refused.accepted_before:
            log.error("the broker refuses event %s and not others: dropped (%s)", event_id, refusal)
            self._dropped += 1
            del self._refused[event_id]
            self._outbox.delivered([event_id])
            return
        self._not_before_ns = self._clock.mono_ns() + RETRY_NS
        self._to_return.append(event_id)

    def connection_lost(self) -> None:
        """Nothing in flight will be acknowledged any more: it all goes out again."""
        self._to_return += self._in_flight.values()
        self._in_flight.clear()
        self._not_before_ns = 0
        self._return()

    def _return(self) -> None:
        self._outbox.returned(self._to_return)
        self._to_return = []

    def _forget(self, there: set[str]) -> None:
        """Refused events come back first; if none does, they gave way to later ones.

        Without this, the doubt about them would slow down all that follow, for good.
        """
        if not there & self._refused.keys():
            self._refused.clear()

    def idle(self) -> bool:
        """True when every event has been delivered."""
        return self._outbox.stats().depth == 0

    def stats(self) -> OutboxStats:
        """The outbox's, with what was dropped here. An event that is lost is a problem of its own.

        A full outbox is no trouble of the disk, so nobody else would tell.
        """
        stats, now_ns = self._outbox.stats(), self._clock.mono_ns()
        dropped = stats.dropped + self._dropped
        if dropped > self._told:
            self._told, self._told_until_ns = dropped, now_ns + TELL_NS
        problem = stats.problem
        if problem is None and now_ns < self._told_until_ns:
            problem = "events dropped"
        return replace(stats, dropped=dropped, problem=problem)
