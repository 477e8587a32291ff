"""Triggers from outside: parsed within bounds, each id once, in a bounded FIFO."""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict, deque
from enum import StrEnum

from metal_edge.domain import Trigger

MAX_PAYLOAD = 4096
MAX_DEADLINE_MS = 60_000.0
# A trigger id seen again within this many others is refused; older ones are forgotten.
REMEMBERED_IDS = 10_000
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_FIELDS = {"trigger_id", "part_id", "deadline_ms"}


class CommandError(Exception):
    """A command that cannot be carried out; the text goes back to the sender."""


def parse_trigger(payload: bytes, now_mono_ns: int, default_deadline_ms: float) -> Trigger:
    """A trigger from `{"trigger_id": str, "part_id": str, "deadline_ms": number?}`.

    Args:
        payload: as it came, at most MAX_PAYLOAD bytes.
        now_mono_ns: arrival; the deadline counts from here.
        default_deadline_ms: when the command has none.

    Raises:
        CommandError: says what is wrong, in one short line.
    """
    if len(payload) > MAX_PAYLOAD:
        raise CommandError(f"payload of {len(payload)} bytes is over {MAX_PAYLOAD}")
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise CommandError("payload is not JSON") from error
    if not isinstance(fields, dict):
        raise CommandError("payload is not a JSON object")
    unknown = sorted(fields.keys() - _FIELDS)
    if unknown:
        raise CommandError(f"unknown field {unknown[0][:16]!a}")
    deadline_ms = _deadline(fields.get("deadline_ms"), default_deadline_ms)
    return Trigger(
        trigger_id=_identifier(fields, "trigger_id"),
        part_id=_identifier(fields, "part_id"),
        t_mono_ns=now_mono_ns,
        deadline_mono_ns=now_mono_ns + round(deadline_ms * 1e6),
    )


def _identifier(fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise CommandError(f"{name} is missing")
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise CommandError(f"{name} must be 1 to 64 of A-Z a-z 0-9 _ . : -")
    return value


def _deadline(value: object, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CommandError("deadline_ms must be a number")
    if not math.isfinite(value) or not 0 < value <= MAX_DEADLINE_MS:
        raise CommandError(f"deadline_ms must be above 0 and at most {MAX_DEADLINE_MS:.0f}")
    return float(value)


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
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: deque[Trigger] = deque()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._closed = False
        self._changed = threading.Condition()

    def offer(self, trigger: Trigger) -> Offer:
        """Appends; never blocks. Any id is judged once, even one that overflowed."""
        with self._changed:
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
            self._changed.notify()
            return Offer.ACCEPTED

    def take(self, timeout_s: float) -> Trigger | None:
        """The oldest waiting trigger, or None after `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting), timeout_s)
            return self._waiting.popleft() if self._waiting else None

    def close(self) -> list[Trigger]:
        """Accepts no more, and hands over what was waiting, oldest first."""
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            return left

    def oldest_deadline_ns(self) -> int | None:
        """Deadline of the trigger that waits longest; None when none waits."""
        with self._changed:
            return self._waiting[0].deadline_mono_ns if self._waiting else None

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)
