"""Whether the PLC still hears us: it sends each heartbeat's number back. No I/O, no clock.

The age of an echo is that of the heartbeat it answers, so an echo that was under way for long,
or is sent again, proves nothing about now.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

log = logging.getLogger(__name__)

MAX_ECHO = 4096


class EchoFields(BaseModel):
    """A heartbeat's number, sent back. The whole heartbeat is an echo as well."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    schema_: Literal[1] = Field(alias="schema", description="version of this payload")
    session_id: str = Field(max_length=64, description="as in the heartbeat")
    seq: int = Field(ge=1, description="as in the heartbeat")


class EchoWatch:
    """Compares echoes with the heartbeats that were sent.

    Args:
        session_id: of this run; echoes of another session do not count.
        timeout_s: the PLC is silent when no heartbeat younger than this was echoed.
    """

    def __init__(self, session_id: str, timeout_s: float) -> None:
        self._session_id = session_id
        self._timeout_ns = round(timeout_s * 1e9)
        self._lock = threading.Lock()
        self._sent: OrderedDict[int, int] = OrderedDict()
        self._since_ns: int | None = None
        self._echoed_ns: int | None = None
        self._told = False

    def connected(self) -> None:
        """A new connection: the PLC has until the first heartbeat's timeout to be back, too."""
        with self._lock:
            self._sent.clear()
            self._since_ns = self._echoed_ns = None

    def sent(self, seq: int, now_ns: int) -> None:
        """Heartbeat `seq` was handed to the broker."""
        with self._lock:
            if self._since_ns is None:
                self._since_ns = now_ns
            self._sent[seq] = now_ns
            while now_ns - next(iter(self._sent.values())) > self._timeout_ns:
                self._sent.popitem(last=False)

    def heard(self, payload: bytes) -> None:
        """A message on `echo`; one that says nothing about now is ignored, and told once."""
        fault = self._take(payload)
        if fault is not None and not self._told:
            log.warning("echo ignored: %s; payload %.80r", fault, payload[:80])
        self._told = fault is not None

    def age_ms(self, now_ns: int) -> float | None:
        """Age of the youngest heartbeat that was echoed; None before the first echo."""
        with self._lock:
            return None if self._echoed_ns is None else (now_ns - self._echoed_ns) / 1e6

    def silent(self, now_ns: int) -> bool:
        """True when the PLC must be taken for deaf."""
        with self._lock:
            last_ns = self._since_ns if self._echoed_ns is None else self._echoed_ns
        return last_ns is not None and now_ns - last_ns > self._timeout_ns

    def _take(self, payload: bytes) -> str | None:
        if len(payload) > MAX_ECHO:
            return f"{len(payload)} bytes are too many"
        try:
            echo = EchoFields.model_validate(json.loads(payload))
        except (ValidationError, ValueError, RecursionError):
            return "not {schema, session_id, seq}"
        if echo.session_id != self._session_id:
            return "of another session"
        with self._lock:
            sent_ns = self._sent.get(echo.seq)
            if sent_ns is None:
                return "no heartbeat of late had this number"
            self._echoed_ns = max(self._echoed_ns or sent_ns, sent_ns)
        return None
