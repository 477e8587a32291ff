"""Takes triggers in: every accepted one gets one verdict, every sender an answer."""

from __future__ import annotations

from collections.abc import Callable

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.deciding.decision import Evidence, Reason, Rules, decide
from metal_edge.daemon.line.reject_gate import make_trigger
from metal_edge.daemon.line.triggers import Offer, TriggerQueue
from metal_edge.daemon.mqtt.commands import Answer, Command
from metal_edge.domain import Decision, Trigger
from metal_edge.settings import CameraMode, DecisionSettings, GateSettings


class TriggerDesk:
    """Handles the verb `trigger`, in the broker's thread.

    Args:
        queue: where accepted triggers wait.
        report: publishes the verdict on a trigger that cannot be queued.
        rules: of the line at that moment; such a verdict is `unknown` under any rules.
        clock: for those verdicts.
        times: the deadline of triggers that name none, and the latest exposure.
        gate: ends every deadline in time, and goes with the decision.
        mode: triggers make sense in one of them only.
    """

    def __init__(
        self,
        queue: TriggerQueue,
        *,
        report: Callable[[Decision], object],
        rules: Callable[[], Rules],
        clock: Clock,
        times: DecisionSettings,
        gate: GateSettings,
        mode: CameraMode,
    ) -> None:
        self._queue = queue
        self._report = report
        self._rules = rules
        self._clock = clock
        self._budget = times, gate
        self._mode = mode

    def budget(self, times: DecisionSettings, gate: GateSettings) -> None:
        """For triggers that come from now on; from any thread."""
        self._budget = times, gate  # as one: no trigger gets half of it

    def handle(self, command: Command) -> Answer:
        """A handler for Commands."""
        trigger = trigger_of(command, *self._budget)
        if self._mode is not CameraMode.TRIGGERED:
            return _refused(trigger, f"no commands trigger this line (camera.mode = {self._mode})")
        offer = self._queue.offer(trigger)
        if offer is Offer.ACCEPTED:
            return Answer("accepted", trigger_id=trigger.trigger_id)
        if offer is not Offer.DUPLICATE:
            fault = Reason.QUEUE_OVERFLOW if offer is Offer.OVERFLOW else Reason.SHUTTING_DOWN
            now_ns = self._clock.mono_ns()
            self._report(decide(trigger, Evidence(fault=fault), self._rules(), now_ns))
        return _refused(trigger, offer.value)


def trigger_of(command: Command, times: DecisionSettings, gate: GateSettings) -> Trigger:
    """The trigger that a command asks for; its deadline counts from the command's arrival."""
    fields = command.fields
    deadline_ms = fields["deadline_ms"]
    return make_trigger(
        fields["trigger_id"],
        fields["part_id"],
        command.arrived_mono_ns,
        times.deadline_ms if deadline_ms is None else deadline_ms,
        gate,
        encoder=fields["encoder"],
        max_exposure_delay_ms=times.max_exposure_delay_ms,
    )


def _refused(trigger: Trigger, why: str) -> Answer:
    return Answer("refused", why, trigger_id=trigger.trigger_id)
