"""Brings audit events from the outbox to the broker, a few at a time. No I/O of its own."""

from __future__ import annotations

from collections.abc import Callable

from metal_edge.daemon.outbox import Outbox, OutboxStats

EVENTS_IN_FLIGHT = 16


class EventSender:
    """Sends what waits and matches acknowledgements to it. One thread, the deciding loop."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._in_flight: dict[int, str] = {}
        self._refused = 0

    def pump(self, publish: Callable[[bytes], int | None]) -> None:
        """Hands events to `publish` until enough are in flight.

        Args:
            publish: gives the message's id, or None when the connection is gone.
        """
        batch = self._outbox.next_batch(EVENTS_IN_FLIGHT - len(self._in_flight))
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
        if refusal is not None:
            self._refused += 1
        self._outbox.delivered([event_id])

    def connection_lost(self) -> None:
        """Nothing in flight will be acknowledged any more: it all goes out again."""
        self._outbox.returned(list(self._in_flight.values()))
        self._in_flight.clear()

    def idle(self) -> bool:
        """True when every event has been delivered."""
        return self._outbox.stats().depth == 0

    def stats(self) -> OutboxStats:
        """The outbox's, with what the broker refused counted as dropped."""
        stats = self._outbox.stats()
        return OutboxStats(
            stats.depth, stats.dropped + self._refused, stats.oldest_age_s, stats.problem
        )
