"""Takes commands in: every well-formed trigger gets one verdict, every sender an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.decision import Evidence, Reason, Rules, decide
from metal_edge.daemon.messages import SCHEMA
from metal_edge.daemon.triggers import CommandError, Offer, TriggerQueue, parse_trigger
from metal_edge.domain import Decision

log = logging.getLogger(__name__)


class TriggerDesk:
    """Handles `cmd/trigger`, in the broker's thread.

    Args:
        queue: where accepted triggers wait.
        report: publishes the verdict on a trigger that cannot be queued.
        rules: of the line; such a verdict is `unknown` under any rules.
        clock: arrival times.
        deadline_ms: for triggers that name none.
        triggered: False in free run, where triggers make no sense.
    """

    def __init__(
        self,
        queue: TriggerQueue,
        *,
        report: Callable[[Decision], None],
        rules: Rules,
        clock: Clock,
        deadline_ms: float,
        triggered: bool,
    ) -> None:
        self._queue = queue
        self._report = report
        self._rules = rules
        self._clock = clock
        self._deadline_ms = deadline_ms
        self._triggered = triggered

    def handle(self, verb: str, payload: bytes, retained: bool) -> dict[str, Any]:
        """The answer to one command; never raises for anything that a sender can send."""
        arrived_ns = self._clock.mono_ns()
        try:
            if verb != "trigger":
                raise CommandError(f"unknown command {verb[:32]!r}")
            if retained:
                raise CommandError("a retained trigger is an old trigger")
            if not self._triggered:
                raise CommandError("the camera runs free (camera.mode = latest)")
            trigger = parse_trigger(payload, arrived_ns, self._deadline_ms)
        except CommandError as error:
            log.warning("command %s refused: %s; payload %.80r", verb[:32], error, payload[:80])
            return _answer(None, str(error))
        offer = self._queue.offer(trigger)
        if offer is Offer.ACCEPTED:
            return _answer(trigger.trigger_id, None)
        if offer is Offer.DUPLICATE:
            log.warning("trigger %s refused: seen before", trigger.trigger_id)
        else:
            fault = Reason.QUEUE_OVERFLOW if offer is Offer.OVERFLOW else Reason.SHUTTING_DOWN
            now_ns = self._clock.mono_ns()
            self._report(decide(trigger, Evidence(fault=fault), self._rules, now_ns))
        return _answer(trigger.trigger_id, offer.value)


def _answer(trigger_id: str | None, refusal: str | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "trigger_id": trigger_id,
        "status": "accepted" if refusal is None else "refused",
        "reason": refusal,
    }
