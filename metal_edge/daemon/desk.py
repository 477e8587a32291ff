"""Takes triggers in: every accepted one gets one verdict, every sender an answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.commands import Answer, Command
from metal_edge.daemon.decision import Evidence, Reason, Rules, decide
from metal_edge.daemon.triggers import Offer, TriggerQueue
from metal_edge.domain import Decision, Trigger

log = logging.getLogger(__name__)


class TriggerDesk:
    """Handles the verb `trigger`, in the broker's thread.

    Args:
        queue: where accepted triggers wait.
        report: publishes the verdict on a trigger that cannot be queued.
        rules: of the line; such a verdict is `unknown` under any rules.
        clock: for those verdicts.
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

    def handle(self, command: Command) -> Answer:
        """A handler for Commands."""
        trigger = trigger_of(command, self._deadline_ms)
        if not self._triggered:
            return _refused(trigger, "the camera runs free (camera.mode = latest)")
        offer = self._queue.offer(trigger)
        if offer is Offer.ACCEPTED:
            return Answer("accepted", trigger_id=trigger.trigger_id)
        if offer is not Offer.DUPLICATE:
            fault = Reason.QUEUE_OVERFLOW if offer is Offer.OVERFLOW else Reason.SHUTTING_DOWN
            now_ns = self._clock.mono_ns()
            self._report(decide(trigger, Evidence(fault=fault), self._rules, now_ns))
        return _refused(trigger, offer.value)


def trigger_of(command: Command, default_deadline_ms: float) -> Trigger:
    """The trigger that a command asks for; its deadline counts from the command's arrival."""
    fields = command.fields
    deadline_ms = fields["deadline_ms"]
    if deadline_ms is None:
        deadline_ms = default_deadline_ms
    return Trigger(
        trigger_id=fields["trigger_id"],
        part_id=fields["part_id"],
        t_mono_ns=command.arrived_mono_ns,
        deadline_mono_ns=command.arrived_mono_ns + round(deadline_ms * 1e6),
        encoder=fields["encoder"],
    )


def _refused(trigger: Trigger, why: str) -> Answer:
    log.warning("trigger %s refused: %s", trigger.trigger_id, why)
    return Answer("refused", why, trigger_id=trigger.trigger_id)
