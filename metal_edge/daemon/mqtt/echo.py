"""Whether the PLC still hears us: it sends each heartbeat's number back. No I/O, no clock.

The age of an echo is that of the heartbeat it answers, so an echo that was under way for long,
or is sent again, proves nothing about now.

Decisions have QoS 0: no acknowledgement tells that the broker's rules refuse them. A PLC may say in
its echo which decision it heard last. One sent longer than the timeout before the heartbeat that
is answered must be among them, however long the echo itself was under way; unless the PLC may have
been away then, having answered no heartbeat for that long.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

log = logging.getLogger(__name__)

MAX_ECHO = 4096


def _without_default(schema: dict[str, Any]) -> None:
    """Left out is not the same as null."""
    del schema["default"]


class EchoFields(BaseModel):
    """A heartbeat's number, sent back. The whole heartbeat is an echo as well."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    schema_: Literal[1] = Field(alias="schema", description="version of this payload")
    session_id: str = Field(max_length=64, description="as in the heartbeat")
    seq: int = Field(ge=1, description="as in the heartbeat")
    decision_seq: int | None = Field(
        default=None,
        ge=0,
        json_schema_extra=_without_default,
        description="highest `seq` of a decision of this session that the PLC heard; 0 or null: "
        "none yet; left out: the PLC does not say",
    )


class _Beat(NamedTuple):
    """A heartbeat that was sent: when, the last decision before it, and the last one that who
    answers it must have heard, being older by the timeout."""

    sent_ns: int
    decision_seq: int
    due_seq: int


class EchoWatch:
    """Compares echoes with the heartbeats that were sent.

    Args:
        session_id: of this run; echoes of another session do not count.
        timeout_s: the PLC is silent when no heartbeat younger than this was echoed, and hears no
            decisions when it answers a heartbeat without knowing one that is older by this.
    """

    def __init__(self, session_id: str, timeout_s: float) -> None:
        self._session_id = session_id
        self._timeout_ns = round(timeout_s * 1e9)
        self._lock = threading.Lock()
        self._sent: OrderedDict[int, _Beat] = OrderedDict()
        self._since_ns: int | None = None
        self._echoed_ns: int | None = None
        self._told = False
        self._given_seq = 0  # may have been sent
        self._sent_seq = 0
        self._due_seq = 0  # sent longer ago than the timeout, as of the last heartbeat
        self._asked_seq = 0  # as of the last heartbeat whose echo says what was heard
        self._settled_seq = 0  # heard, or sent when the PLC may have been away

    def connected(self) -> None:
        """A new connection: the PLC has until the first heartbeat's timeout to be back, too."""
        with self._lock:
            self._sent.clear()
            self._since_ns = self._echoed_ns = None

    def deciding(self, seq: int) -> None:
        """Decision `seq` is about to be sent: an echo may name it from now on."""
        self._given_seq = seq

    def decided(self, seq: int) -> None:
        """Decision `seq` was handed to the broker. Higher than the one before."""
        self._sent_seq = seq

    def sent(self, seq: int, now_ns: int) -> None:
        """Heartbeat `seq` was handed to the broker."""
        with self._lock:
            if self._since_ns is None:
                self._since_ns = now_ns
            while self._sent and now_ns - self._oldest_ns() > self._timeout_ns:
                self._due_seq = self._sent.popitem(last=False)[1].decision_seq
            self._sent[seq] = _Beat(now_ns, self._sent_seq, self._due_seq)

    def heard(self, payload: bytes) -> None:
        """A message on `echo`; one that says nothing about now is ignored, and told once."""
        was_unheard = self.unheard
        fault = self._take(payload)
        if fault is not None and not self._told:
            log.warning("echo ignored: %s; payload %.80r", fault, payload[:80])
        self._told = fault is not None
        if self.unheard and not was_unheard:
            log.error(
                "decisions %d to %d did not reach the PLC, heartbeats do: check the broker's access"
                " rules for `decision` (metal-edge doctor --config, while no daemon runs), and that"
                " the PLC subscribes to it",
                self._settled_seq + 1,
                self._asked_seq,
            )

    def age_ms(self, now_ns: int) -> float | None:
        """Age of the youngest heartbeat that was echoed; None before the first echo."""
        with self._lock:
            return None if self._echoed_ns is None else (now_ns - self._echoed_ns) / 1e6

    def silent(self, now_ns: int) -> bool:
        """True when the PLC must be taken for deaf."""
        with self._lock:
            last_ns = self._since_ns if self._echoed_ns is None else self._echoed_ns
        return last_ns is not None and now_ns - last_ns > self._timeout_ns

    @property
    def unheard(self) -> bool:
        """True when heartbeats reach the PLC and decisions, as it says itself, do not."""
        with self._lock:
            return self._asked_seq > self._settled_seq

    def _oldest_ns(self) -> int:
        return next(iter(self._sent.values())).sent_ns

    def _take(self, payload: bytes) -> str | None:
        if len(payload) > MAX_ECHO:
            return f"{len(payload)} bytes are too many"
        try:
            echo = EchoFields.model_validate(json.loads(payload))
        except (ValidationError, ValueError, RecursionError):
            return "not {schema, session_id, seq}, and decision_seq if anything"
        if echo.session_id != self._session_id:
            return "of another session"
        heard_seq = echo.decision_seq or 0
        if heard_seq > self._given_seq:
            return "no decision had this number"
        with self._lock:
            beat = self._sent.get(echo.seq)
            if beat is None:
                return "no heartbeat of late had this number"
            last_ns, self._echoed_ns = self._echoed_ns, max(self._echoed_ns or 0, beat.sent_ns)
            if last_ns is None or beat.sent_ns - last_ns > self._timeout_ns:
                self._settled_seq = max(self._settled_seq, beat.decision_seq)
            if "decision_seq" in echo.model_fields_set:
                self._settled_seq = max(self._settled_seq, heard_seq)
                self._asked_seq = max(self._asked_seq, beat.due_seq)
        return None
