"""What the PLC reads of the daemon's messages: strictly, or not at all. Pure, no I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from metal_edge.domain import Verdict

SCHEMA = 1  # of the decision payload; another number may mean something else by `pass`
MAX_PAYLOAD_BYTES = 65_536  # a decision takes about 1 KiB; parsing more could stall the gate
MAX_ID_CHARS = 256
ALIVE = ("online", "degraded")  # every other status means offline


class MalformedMessageError(ValueError):
    """A payload that must not be believed; carries the ids it names, where readable."""

    def __init__(self, what: str, trigger_id: str | None = None, part_id: str | None = None):
        super().__init__(what)
        self.trigger_id = trigger_id
        self.part_id = part_id


@dataclass(frozen=True, slots=True)
class DecisionMessage:
    """What the gate reads of one decision. `t_*_ns` are UTC on the daemon's clock."""

    event_id: str
    session_id: str
    seq: int
    trigger_id: str
    part_id: str
    verdict: Verdict
    reason: str
    score: float | None
    threshold: float | None
    frame_id: str | None
    t_exposure_ns: int | None
    t_publish_ns: int | None


def parse_decision(payload: bytes) -> DecisionMessage:
    """Reads a decision strictly.

    Raises:
        MalformedMessageError: not one JSON object (RFC 8259: no NaN, no repeated key), another
            schema, a field of the wrong type, or a `pass` without a finite score below a
            finite threshold.
    """
    values, constants = _load(payload)
    trigger_id, part_id = (_id_or_none(values.get(key)) for key in ("trigger_id", "part_id"))
    try:
        if constants:
            raise MalformedMessageError(f"{constants[0]} is not JSON")
        if type(values.get("schema")) is not int or values["schema"] != SCHEMA:
            raise MalformedMessageError(f"schema {values.get('schema')!r} is not {SCHEMA}")
        message = DecisionMessage(
            event_id=_id(values, "event_id"),
            session_id=_id(values, "session_id"),
            seq=_integer(values, "seq"),
            trigger_id=_id(values, "trigger_id"),
            part_id=_id(values, "part_id"),
            verdict=_verdict(values),
            reason=_id_or_none(values.get("reason")) or "",
            score=_number(values, "score"),
            threshold=_number(values, "threshold"),
            frame_id=_id_or_none(values.get("frame_id")),
            t_exposure_ns=_time(values, "t_exposure_ns"),
            t_publish_ns=_time(values, "t_publish_ns"),
        )
        if message.verdict is Verdict.PASS and not _below(message.score, message.threshold):
            raise MalformedMessageError("pass without a score below its threshold")
    except MalformedMessageError as error:
        raise MalformedMessageError(str(error), trigger_id, part_id) from error
    return message


def _below(score: float | None, threshold: float | None) -> bool:
    return score is not None and threshold is not None and score < threshold


def parse_heartbeat(payload: bytes) -> tuple[str, int, bool]:
    """Session, running number, and whether the daemon says it can be trusted.

    Raises:
        MalformedMessageError: not a heartbeat.
    """
    values, constants = _load(payload)
    if constants:
        raise MalformedMessageError(f"{constants[0]} is not JSON")
    return _id(values, "session_id"), _integer(values, "seq"), values.get("healthy") is True


def parse_state(payload: bytes) -> tuple[str, bool]:
    """Session, and whether it lives. `degraded` does: its heartbeats say if it may pass parts.

    Raises:
        MalformedMessageError: not a state (an empty payload, a cleared topic, among them).
    """
    values, _ = _load(payload)
    return _id(values, "session_id"), values.get("status") in ALIVE


def is_refusal(payload: bytes) -> bool:
    """Whether a reply to a trigger refuses it, or cannot be read. Only counted: the gate waits."""
    try:
        values, _ = _load(payload)
    except MalformedMessageError:
        return True
    return values.get("status") != "accepted"


def _load(payload: bytes) -> tuple[dict[str, Any], list[str]]:
    """One JSON object, and the NaN or Infinity literals met in it (JSON has none)."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise MalformedMessageError(f"payload of {len(payload)} bytes")
    constants: list[str] = []
    try:
        values = json.loads(
            payload.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=constants.append,
        )
    except (ValueError, RecursionError) as error:
        raise MalformedMessageError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise MalformedMessageError("not a JSON object")
    return values, constants


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two `verdict` keys in one object would let the last one win; refuse instead."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is repeated")
    return values


def _id_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARS else None


def _id(values: dict[str, Any], key: str) -> str:
    value = _id_or_none(values.get(key))
    if value is None:
        raise MalformedMessageError(f"{key} is missing or not a short string")
    return value


def _integer(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if type(value) is not int or not 0 <= value < 2**63:
        raise MalformedMessageError(f"{key} is missing or not a 64-bit count")
    return value


def _time(values: dict[str, Any], key: str) -> int | None:
    return None if values.get(key) is None else _integer(values, key)


def _number(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    # comparing keeps NaN, infinities and integers too large for a float out at once
    if type(value) not in (int, float) or not -1e300 < value < 1e300:
        raise MalformedMessageError(f"{key} is not a finite number")
    return float(value)


def _verdict(values: dict[str, Any]) -> Verdict:
    value = values.get("verdict")
    if not isinstance(value, str) or value not in set(Verdict):
        raise MalformedMessageError("verdict is not pass, reject or unknown")
    return Verdict(value)
