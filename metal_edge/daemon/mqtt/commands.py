"""Commands from outside: bounded, checked, handed to whoever registered for the verb, answered.

Every command gets one answer, also one that nobody here can carry out. A handler is called in
the broker's thread and must be quick; what takes longer answers later, from any thread.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.mqtt.command_fields import FIELDS
from metal_edge.daemon.mqtt.messages import SCHEMA

log = logging.getLogger(__name__)

MAX_PAYLOAD = 4096
# An empty payload stands for `{}`: `mosquitto_pub -n` is enough to arm a line.
NOTHING = b"{}"

Status = Literal["accepted", "done", "refused", "failed"]
# What an answer to this verb always names, also one that refuses what could not be read.
ALWAYS: dict[str, dict[str, Any]] = {"trigger": {"trigger_id": None}}


class CommandError(Exception):
    """A command that cannot be carried out; the text goes back to the sender."""


class Answer:
    """What the sender hears.

    Args:
        status: `accepted`: it waits for its turn; `done`; `refused`: nothing was changed;
            `failed`: tried, and nothing is changed now.
        reason: of a refusal or failure, in one short line.
        details: more fields, as the verb's answer has them.
    """

    __slots__ = ("details", "reason", "status")

    def __init__(self, status: Status, reason: str | None = None, **details: Any) -> None:
        self.status = status
        self.reason = reason
        self.details = details

    def payload(self, verb: str) -> dict[str, Any]:
        """As it is published."""
        return {
            "schema": SCHEMA,
            "verb": verb,
            "status": self.status,
            "reason": self.reason,
            **ALWAYS.get(verb, {}),
            **self.details,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """One command whose fields are as they should be.

    Attributes:
        fields: all fields of the verb's model; those not sent have their defaults.
        arrived_mono_ns: when it reached this process.
        reply: gives the answer later; from any thread, once.
    """

    verb: str
    fields: Mapping[str, Any]
    arrived_mono_ns: int
    reply: Callable[[Answer], None]


# Gives the answer, or None when it will call `reply` itself.
Handler = Callable[[Command], Answer | None]
Send = Callable[[dict[str, Any]], None]


class Commands:
    """Knows who carries out which verb."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._handlers: dict[str, Handler] = {}

    def register(self, verb: str, handler: Handler) -> None:
        """Before the line is armed. Raises ValueError for a verb without fields, or taken."""
        if verb not in FIELDS or verb in self._handlers:
            raise ValueError(f"verb {verb!r} is unknown or taken")
        self._handlers[verb] = handler

    def handle(self, verb: str, payload: bytes, retained: bool, send: Send) -> None:
        """Answers one command through `send`, now or later.

        Raises nothing for anything that a sender can send. What a handler raises is passed on
        after the answer `failed`.
        """
        reply = _Reply(verb, payload, send)
        try:
            handler, fields = self._accept(verb, payload, retained)
        except CommandError as error:
            reply(Answer("refused", str(error)))
            return
        command = Command(verb, fields, self._clock.mono_ns(), reply)
        try:
            answer = handler(command)
        except Exception:
            reply(Answer("failed", "internal error; see the log"))
            raise
        if answer is not None:
            reply(answer)

    def _accept(self, verb: str, payload: bytes, retained: bool) -> tuple[Handler, dict[str, Any]]:
        if verb not in FIELDS:
            raise CommandError(f"unknown command {verb[:32]!a}")
        if retained:
            raise CommandError("a retained command is an old command")
        fields = read_fields(verb, payload)
        handler = self._handlers.get(verb)
        if handler is None:
            raise CommandError("not supported by this line")
        return handler, fields


class _Reply:
    """Answers at most once: a sender must not hear `done` after `failed`.

    Every refusal is logged here, whoever refuses: many a sender does not ask for an answer.
    """

    def __init__(self, verb: str, payload: bytes, send: Send) -> None:
        self._verb = verb
        self._payload = payload[:80]
        self._send: Send | None = send
        self._lock = threading.Lock()

    def __call__(self, answer: Answer) -> None:
        with self._lock:
            send, self._send = self._send, None
        if send is None:
            log.error("command %s: a second answer (%s) is dropped", self._verb, answer.status)
            return
        if answer.status == "refused":
            verb, why = self._verb, answer.reason
            log.warning("command %.34a refused: %s; payload %.80r", verb, why, self._payload)
        send(answer.payload(self._verb))


def read_fields(verb: str, payload: bytes) -> dict[str, Any]:
    """The fields of a known verb.

    Raises:
        CommandError: too long, not one JSON object, or not as the verb's model says.
    """
    if len(payload) > MAX_PAYLOAD:
        raise CommandError(f"payload of {len(payload)} bytes is over {MAX_PAYLOAD}")
    try:
        values = json.loads(payload or NOTHING, object_pairs_hook=_unique)
    except _RepeatedKeyError as error:
        raise CommandError("a key is repeated") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise CommandError("payload is not JSON") from error
    if not isinstance(values, dict):
        raise CommandError("payload is not a JSON object")
    try:
        return FIELDS[verb].model_validate(values).model_dump()
    except ValidationError as error:
        raise CommandError(_first_problem(error)) from error


class _RepeatedKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two `part_id` the last would win silently, and another reader may take the first."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _RepeatedKeyError
    return values


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "payload"
    if first["type"] == "extra_forbidden":
        return f"unknown field {name[:16]!a}"
    if first["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {first['msg']}"
