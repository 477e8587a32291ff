"""The commands that a line carries out itself: trigger, arm, disarm, snapshot."""

from __future__ import annotations

from metal_edge.daemon.line.desk import TriggerDesk
from metal_edge.daemon.line.line import Line, Parts
from metal_edge.daemon.line.reporter import Reporter
from metal_edge.daemon.mqtt.commands import Answer, Command, Commands
from metal_edge.daemon.mqtt.messages import event_id
from metal_edge.domain import Decision

MAX_REASON = 80  # of a `disarm`, in every heartbeat


def register(commands: Commands, line: Line, parts: Parts) -> TriggerDesk:
    """Before the broker is asked for commands; gives the desk that takes triggers in."""
    settings = parts.settings
    desk = TriggerDesk(
        parts.queue,
        report=parts.reporter.report,
        rules=lambda: line.serving.rules,
        clock=parts.clock,
        times=settings.decision,
        gate=settings.gate,
        mode=settings.camera.mode,
    )
    commands.register("trigger", desk.handle)
    commands.register("arm", lambda command: _arm(line))
    commands.register("disarm", lambda command: _disarm(line, command))
    commands.register("snapshot", lambda command: _snapshot(line, parts.reporter, command))
    return desk


def _arm(line: Line) -> Answer:
    return Answer("done", state=line.arm().value)


def _disarm(line: Line, command: Command) -> Answer:
    because = " ".join(str(command.fields["reason"] or "").split())[:MAX_REASON]
    return Answer("done", state=line.disarm(because).value)


def _snapshot(line: Line, reporter: Reporter, command: Command) -> Answer | None:
    """Answered when the part has come."""
    if not reporter.keeps_pictures:
        return Answer("refused", "no place for pictures: set evidence.path")
    identity = line.serving.identity

    def taken(decision: Decision | None) -> None:
        if decision is None:
            command.reply(Answer("failed", "the line stopped before there was a part"))
            return
        trigger = decision.trigger
        command.reply(
            Answer(
                "done",
                trigger_id=trigger.trigger_id,
                part_id=trigger.part_id,
                event_id=event_id(
                    identity.topic_root, identity.session_id, trigger.trigger_id, decision.seq
                ),
            )
        )

    if line.snapshot(taken):
        return None
    return Answer("refused", "too many snapshots wait for a part already")
