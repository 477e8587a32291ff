"""Commands, well-formed or not: one answer each, and handlers see only what they expect."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.deciding.decision import Rules
from metal_edge.daemon.line.bell import Bell
from metal_edge.daemon.line.desk import TriggerDesk, trigger_of
from metal_edge.daemon.line.triggers import TriggerQueue
from metal_edge.daemon.mqtt.command_fields import FIELDS
from metal_edge.daemon.mqtt.commands import (
    MAX_PAYLOAD,
    Answer,
    Command,
    CommandError,
    Commands,
    Handler,
    read_fields,
)
from metal_edge.domain import Decision, Trigger, Verdict
from metal_edge.settings import CameraMode, DecisionSettings, GateSettings

TRIGGER = b'{"trigger_id": "t", "part_id": "p"}'

texts = st.text("aZ0_.:-/\n\0 \u00e9\U0010ffff", max_size=70)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
payloads = st.fixed_dictionaries(
    {},
    optional={
        "trigger_id": json_values | st.just("t1"),
        "part_id": json_values | st.just("p1"),
        "deadline_ms": json_values | st.floats(0, 1e5),
        "encoder": json_values | st.integers(-(2**33), 2**33),
        "recipe": json_values | st.just("r1"),
        "reason": json_values,
        "more": json_values,
    },
).map(lambda fields: json.dumps(fields).encode())


def asked(verb: str, payload: bytes, handler: Handler, *, retained: bool = False) -> list[Any]:
    """What is answered to one command when `handler` is there for the verb."""
    commands = Commands(SystemClock())
    commands.register(verb, handler)
    answers: list[Any] = []
    commands.handle(verb, payload, retained, answers.append)
    return answers


@given(st.sampled_from(sorted(FIELDS)), st.binary(max_size=64) | payloads)
def test_any_payload_is_refused_in_one_line_or_reaches_the_handler_checked(
    verb: str, payload: bytes
) -> None:
    seen: list[Command] = []

    def handler(command: Command) -> Answer:
        seen.append(command)
        return Answer("accepted")

    (answer,) = asked(verb, payload, handler)
    json.dumps(answer, allow_nan=False)
    assert (answer["verb"], answer["schema"]) == (verb, 1)
    if answer["status"] == "refused":
        assert seen == []
        assert 0 < len(answer["reason"]) <= 120
        assert answer["reason"].isprintable()
        return
    (command,) = seen
    fields = command.fields
    assert fields.keys() == FIELDS[verb].model_fields.keys()
    for name in fields.keys() & {"trigger_id", "part_id", "recipe"}:
        assert 1 <= len(fields[name]) <= 64
        assert "/" not in fields[name] and fields[name].isprintable()
    deadline_ms = fields.get("deadline_ms")
    assert deadline_ms is None or (math.isfinite(deadline_ms) and 0 < deadline_ms <= 60_000)
    encoder = fields.get("encoder")
    assert encoder is None or (type(encoder) is int and -(2**31) <= encoder < 2**32)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b'{"trigger_id": "t", "part_id": "p", "deadline_ms": true}', "deadline_ms"),
        (b'{"trigger_id": "t", "part_id": "p", "deadline_ms": -1}', "deadline_ms"),
        (b'{"trigger_id": "t", "part_id": "p", "deadline_ms": "5"}', "deadline_ms"),
        (b'{"trigger_id": "t", "part_id": "p", "deadline_ms": NaN}', "deadline_ms"),
        (b'{"trigger_id": "t", "part_id": "p", "deadline_ms": 1e999}', "deadline_ms"),
        (b'{"trigger_id": "t", "part_id": "p", "deadline_ms": 1' + b"0" * 3000 + b"}", "deadline"),
        (b'{"trigger_id": "t", "part_id": "p", "deadline_ms": 60001}', "deadline_ms"),
        (b'{"trigger_id": "t", "part_id": "p", "encoder": 1.0}', "encoder"),
        (b'{"trigger_id": "t", "part_id": "p", "encoder": -2147483649}', "encoder"),
        (b'{"trigger_id": "t", "part_id": "p", "encoder": 4294967296}', "encoder"),
        (b'{"trigger_id": "t\\n", "part_id": "p"}', "trigger_id"),
        (b'{"trigger_id": "t\\u0000", "part_id": "p"}', "trigger_id"),
        (b'{"trigger_id": "", "part_id": "p"}', "trigger_id"),
        (b'{"trigger_id": "' + b"t" * 65 + b'", "part_id": "p"}', "trigger_id"),
        (b'{"trigger_id": "t"}', "part_id is missing"),
        (b'{"trigger_id": "t", "part_id": "p", "x\\u0000": 1}', "unknown field 'x\\x00'"),
        (b'{"trigger_id": "t", "part_id": "p", "part_id": "q"}', "repeated"),
        (TRIGGER + b" " * MAX_PAYLOAD, "bytes"),
        (b"[" * MAX_PAYLOAD, "JSON"),
        (b"[]", "object"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_refused_for_this(payload: bytes, words: str) -> None:
    with pytest.raises(CommandError) as caught:
        read_fields("trigger", payload)
    assert words in str(caught.value)


def never(command: Command) -> Answer:
    raise AssertionError(command)


def test_retained_unknown_and_unregistered_commands_are_refused() -> None:
    (old,) = asked("trigger", TRIGGER, never, retained=True)
    assert (old["status"], old["trigger_id"]) == ("refused", None)
    assert "retained" in old["reason"]
    commands, answers = Commands(SystemClock()), []
    commands.handle("format-disk\n", b"{}", False, answers.append)
    commands.handle("arm", b"{}", False, answers.append)
    assert [a["status"] for a in answers] == ["refused", "refused"]
    assert answers[0]["reason"] == r"unknown command 'format-disk\n'"
    assert answers[1]["reason"] == "not supported by this line"


def test_a_topic_cannot_write_lines_of_its_own_into_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Commands(SystemClock()).handle("a\n<3>\x1b[2J\u2028b", b"\n{}", False, lambda answer: None)
    (record,) = caplog.records
    assert record.getMessage().startswith("command 'a\\n<3>\\x1b[2J\\u2028b' refused: ")
    assert record.getMessage().isprintable()


def test_an_empty_payload_is_a_command_without_fields() -> None:
    (answer,) = asked("arm", b"", lambda command: Answer("done"))
    assert answer["status"] == "done"
    (refused,) = asked("recipe", b"", never)
    assert refused["reason"] == "recipe is missing"


def test_a_slow_handler_answers_later_and_only_once(caplog: pytest.LogCaptureFixture) -> None:
    waiting: list[Command] = []
    commands, answers = Commands(SystemClock()), []
    commands.register("recipe", waiting.append)
    commands.handle("recipe", b'{"recipe": "flange"}', False, answers.append)
    assert answers == []
    reply = waiting[0].reply
    worker = threading.Thread(target=reply, args=(Answer("done", recipe="flange"),))
    worker.start()
    worker.join(10)
    reply(Answer("failed", "too late"))
    assert [(a["status"], a["recipe"]) for a in answers] == [("done", "flange")]
    assert "second answer" in caplog.text


def test_who_refuses_tells_the_log_whether_now_or_later(caplog: pytest.LogCaptureFixture) -> None:
    def taken(command: Command) -> None:
        command.reply(Answer("refused", "later"))

    def refused(command: Command) -> Answer:
        return Answer("refused", "no recipe 'bottle' in the settings")

    for handler, why in ((refused, "no recipe 'bottle' in the settings"), (taken, "later")):
        caplog.clear()
        (answer,) = asked("recipe", b'{"recipe": "bottle"}', handler)
        assert answer["reason"] == why
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert f"command 'recipe' refused: {why}; payload" in record.getMessage()
        assert "bottle" in record.getMessage()


def test_a_handler_that_breaks_is_answered_and_passed_on() -> None:
    def broken(command: Command) -> Answer:
        raise RuntimeError("secret detail")

    commands, answers = Commands(SystemClock()), []
    commands.register("arm", broken)
    with pytest.raises(RuntimeError):
        commands.handle("arm", b"{}", False, answers.append)
    assert answers[0]["status"] == "failed"
    assert "secret" not in answers[0]["reason"]


def test_a_verb_has_one_handler() -> None:
    commands = Commands(SystemClock())
    commands.register("arm", never)
    for verb in ("arm", "shell"):
        with pytest.raises(ValueError, match=verb):
            commands.register(verb, never)


def test_the_deadline_counts_from_arrival() -> None:
    def triggered(payload: bytes) -> Trigger:
        fields = read_fields("trigger", payload)
        return trigger_of(Command("trigger", fields, 7, never), DecisionSettings(), GateSettings())  # type: ignore[arg-type]

    own = b'{"trigger_id": "t", "part_id": "p", "deadline_ms": 20.5, "encoder": 12}'
    assert triggered(own) == Trigger("t", "p", 7, 7 + 20_500_000, encoder=12)
    assert triggered(TRIGGER) == Trigger("t", "p", 7, 500_000_007)


def desk(
    queue: TriggerQueue, told: list[Decision], mode: CameraMode = CameraMode.TRIGGERED
) -> TriggerDesk:
    return TriggerDesk(
        queue,
        report=told.append,
        rules=lambda: Rules(0.5, 10**9),
        clock=SystemClock(),
        times=DecisionSettings(),
        gate=GateSettings(),
        mode=mode,
    )


def test_the_desk_gives_every_accepted_id_one_verdict() -> None:
    queue, told = TriggerQueue(1, Bell()), list[Decision]()
    handle = desk(queue, told).handle
    answers = [
        asked("trigger", f'{{"trigger_id": "{name}", "part_id": "p"}}'.encode(), handle)[0]
        for name in ("a", "a", "b")
    ]
    assert [(a["status"], a["reason"], a["trigger_id"]) for a in answers] == [
        ("accepted", None, "a"),
        ("refused", "duplicate_trigger", "a"),
        ("refused", "queue_overflow", "b"),
    ]
    assert [(d.trigger.trigger_id, d.verdict) for d in told] == [("b", Verdict.UNKNOWN)]
    assert len(queue) == 1


@pytest.mark.parametrize("mode", [CameraMode.LATEST, CameraMode.HARDWARE])
def test_no_command_triggers_a_camera_that_has_its_own_pace(mode: CameraMode) -> None:
    queue = TriggerQueue(1, Bell())
    (answer,) = asked("trigger", TRIGGER, desk(queue, [], mode).handle)
    assert (answer["status"], len(queue)) == ("refused", 0)
    assert f"camera.mode = {mode}" in answer["reason"]
