"""The PLC's reject gate as a pure state machine: energise to pass, nothing else opens it.

No I/O and no clock: every event carries `now`, nanoseconds of CLOCK_MONOTONIC on the PLC. The
protocol and its state table are in docs/fail-safe.md. A part is let go only if, from the
photo-eye to the gate, the daemon's link stayed armed and exactly one decision concerned the
part, in time, well formed, with matching ids and a finite score below a finite threshold.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from metal_edge.demo.gate_messages import (
    DecisionMessage,
    MalformedMessageError,
    parse_decision,
    parse_heartbeat,
    parse_state,
)
from metal_edge.domain import Verdict

REMEMBERED_TRIGGERS = 1024  # parts past the gate whose late decisions are still recognised
REMEMBERED_SESSIONS = 256  # replaced sessions that may never come back


class Cause(StrEnum):
    """Why the gate did what it did. PASS_VERDICT alone means that the part was let go."""

    PASS_VERDICT = "pass_verdict"  # noqa: S105  (not a password)
    REJECT_VERDICT = "reject_verdict"
    UNKNOWN_VERDICT = "unknown_verdict"
    NO_DECISION = "no_decision"
    LATE_DECISION = "late_decision"
    LATE_EXPOSURE = "late_exposure"
    MISMATCHED_ID = "mismatched_id"
    DUPLICATE_DECISION = "duplicate_decision"
    CONTRADICTORY_DECISIONS = "contradictory_decisions"
    MALFORMED_DECISION = "malformed_decision"
    NO_HEARTBEAT = "no_heartbeat"
    DAEMON_UNHEALTHY = "daemon_unhealthy"
    DAEMON_OFFLINE = "daemon_offline"
    SESSION_CHANGED = "session_changed"
    BROKER_LOST = "broker_lost"
    LINE_STOPPED = "line_stopped"


_CAUSE_OF_VERDICT = {
    Verdict.PASS: Cause.PASS_VERDICT,
    Verdict.REJECT: Cause.REJECT_VERDICT,
    Verdict.UNKNOWN: Cause.UNKNOWN_VERDICT,
}


@dataclass(frozen=True, slots=True)
class GateRecord:
    """What happened to one part at the gate; all times are the PLC's CLOCK_MONOTONIC in ns.

    `message` is the first decision that concerned the part, believed or not. A golden part
    leaves by the reject chute whatever its cause: it checks the line, and is no product.
    """

    part_id: str
    trigger_id: str
    t_trigger_ns: int
    gate_ns: int
    cause: Cause
    message: DecisionMessage | None
    arrival_ns: int | None
    golden: bool = False

    @property
    def passed(self) -> bool:
        """True when the gate let the part go."""
        return self.cause is Cause.PASS_VERDICT and not self.golden


@dataclass(frozen=True, slots=True)
class LateDecision:
    """A decision for a part that has left the gate: it changes nothing but the log."""

    message: DecisionMessage
    arrival_ns: int

    @property
    def trigger_id(self) -> str:
        """Which part it came too late for."""
        return self.message.trigger_id


class Echo(NamedTuple):
    """What the PLC answers to a heartbeat: its numbers, and the last decision heard (0: none)."""

    session_id: str
    seq: int
    decision_seq: int


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Times in ns. Three missed heartbeats trip the gate; 5 Hz is the daemon's default."""

    heartbeat_timeout_ns: int = 600_000_000
    rearm_heartbeats: int = 3

    def __post_init__(self) -> None:
        """A gate that never trips, or arms on nothing, cannot be constructed."""
        if self.heartbeat_timeout_ns <= 0 or self.rearm_heartbeats < 1:
            raise ValueError(f"timeouts and counts must be positive: {self!r}")


@dataclass(slots=True)
class _Part:
    """A part between photo-eye and gate. The first fault stays: nothing can redeem it."""

    part_id: str
    trigger_id: str
    session_id: str | None
    t_trigger_ns: int
    gate_ns: int
    leaves_ns: int | None
    fault: Cause | None
    golden: bool
    message: DecisionMessage | None = None
    arrival_ns: int | None = None

    def hear(self, message: DecisionMessage, now: int, fault: Cause | None) -> None:
        if self.message is None:
            self.message, self.arrival_ns = message, now
        elif fault is None:
            same = message == self.message
            fault = Cause.DUPLICATE_DECISION if same else Cause.CONTRADICTORY_DECISIONS
        self.fault = self.fault or fault

    def record(self) -> GateRecord:
        cause = self.fault
        if cause is None:
            message = self.message
            cause = Cause.NO_DECISION if message is None else _CAUSE_OF_VERDICT[message.verdict]
        return GateRecord(
            self.part_id,
            self.trigger_id,
            self.t_trigger_ns,
            self.gate_ns,
            cause,
            self.message,
            self.arrival_ns,
            self.golden,
        )


class RejectGate:
    """The gate and its view of the daemon. Not thread-safe: the caller serialises events.

    Attributes:
        fault: why parts would be rejected whatever their verdict; None while armed.
        session_id: the daemon session last seen online.
        malformed, stray: messages refused, and messages that concerned nothing in flight.
    """

    def __init__(self, settings: GateSettings | None = None) -> None:
        self._settings = settings or GateSettings()
        self._parts: dict[str, _Part] = {}
        self._closed: deque[str] = deque(maxlen=REMEMBERED_TRIGGERS)
        self._retired: deque[str] = deque(maxlen=REMEMBERED_SESSIONS)
        self._online = False
        self._last_beat_ns: int | None = None
        self._last_beat_seq = -1
        self._decision_seq = 0
        self._beats = 0
        self._beats_needed = 1
        self.session_id: str | None = None
        self.fault: Cause | None = Cause.DAEMON_OFFLINE
        self.malformed = 0
        self.stray = 0

    def on_trigger(
        self,
        trigger_id: str,
        part_id: str,
        now: int,
        gate_ns: int,
        *,
        leaves_ns: int | None = None,
        golden: bool = False,
    ) -> None:
        """A part passes the photo-eye; it reaches the gate at `gate_ns`.

        It stands before the camera until `leaves_ns`: a picture taken later shows the next one.
        None where the camera itself knows its part, such as one wired to the photo-eye.

        If that is already past, no decision can be in time any more.

        Raises:
            ValueError: the trigger was there before, or the part is under way.
        """
        self._advance(now)
        known = {part.part_id for part in self._parts.values()}
        if trigger_id in self._parts or trigger_id in self._closed or part_id in known:
            raise ValueError(f"trigger {trigger_id!r} for part {part_id!r} is not new")
        self._parts[trigger_id] = _Part(
            part_id, trigger_id, self.session_id, now, gate_ns, leaves_ns, self.fault, golden
        )

    def on_decision(
        self, payload: bytes, now: int, *, retained: bool = False
    ) -> LateDecision | None:
        """A message on `decision`. Returns it if it concerns a part already past the gate."""
        self._advance(now)
        try:
            message = parse_decision(payload)
        except MalformedMessageError as error:
            self._condemn_malformed(error)
            return None
        if message.session_id == self.session_id and not retained:
            self._decision_seq = max(self._decision_seq, message.seq)
        concerned = self._concerned(message.trigger_id, message.part_id)
        if not concerned:
            if message.trigger_id in self._closed:
                return LateDecision(message, now)
            self.stray += 1
            return None
        for part in concerned:
            part.hear(message, now, _objection(part, message, now, retained))
        return None

    def on_heartbeat(self, payload: bytes, now: int, *, retained: bool = False) -> Echo | None:
        """A message on `heartbeat`. Only a fresh one of the session online counts.

        Returns:
            The answer to one that counts, be it healthy or not: a daemon that is unhealthy for
            want of an echo could not recover otherwise.
        """
        self._advance(now)
        try:
            session_id, seq, healthy = parse_heartbeat(payload)
        except MalformedMessageError:
            self.malformed += 1
            return None
        current = self._online and session_id == self.session_id
        if retained or not current or seq <= self._last_beat_seq:
            self.stray += 1
            return None
        self._last_beat_seq = seq
        echo = Echo(session_id, seq, self._decision_seq)
        if not healthy:
            self._trip(Cause.DAEMON_UNHEALTHY)
            return echo
        self._last_beat_ns = now
        self._beats += 1
        if self._beats >= self._beats_needed:
            self.fault = None
        return echo

    def on_state(self, payload: bytes, now: int) -> None:
        """A message on `state` (retained): birth, or the last will."""
        self._advance(now)
        try:
            session_id, online = parse_state(payload)
        except MalformedMessageError:
            self.malformed += 1
            self._go_offline(Cause.DAEMON_OFFLINE)
            return
        if session_id in self._retired:
            self.stray += 1  # the will of a daemon that was replaced, or its ghost
        elif online and session_id == self.session_id:
            self._online = True
        elif online:
            self._adopt(session_id)
        elif session_id == self.session_id or not self._online:
            self._go_offline(Cause.DAEMON_OFFLINE)
        else:
            self.stray += 1

    def on_broker_lost(self, now: int) -> None:
        """The PLC's own connection is gone."""
        self._advance(now)
        self._go_offline(Cause.BROKER_LOST)

    def on_line_stopped(self, now: int) -> None:
        """The conveyor stands: what is on it will be cleared out by the reject chute."""
        self._advance(now)
        self._condemn(Cause.LINE_STOPPED)

    def link_fault(self, now: int) -> Cause | None:
        """`fault` as it stands at `now`: silence makes no event of its own."""
        self._advance(now)
        return self.fault

    def at_gate(self, trigger_id: str, now: int) -> GateRecord:
        """The part stands at the gate: decides, once and for all.

        Raises:
            ValueError: no such part is under way, or it has not reached the gate yet.
        """
        part = self._parts.get(trigger_id)
        if part is None or now < part.gate_ns:
            raise ValueError(f"trigger {trigger_id!r} has no part at the gate")
        self._advance(now)
        del self._parts[trigger_id]
        self._closed.append(trigger_id)
        return part.record()

    def _advance(self, now: int) -> None:
        """Trips on a silent daemon, before the event at `now` is looked at."""
        last = self._last_beat_ns
        if last is not None and now - last > self._settings.heartbeat_timeout_ns:
            self._trip(Cause.NO_HEARTBEAT)

    def _trip(self, cause: Cause) -> None:
        """Disarms and condemns every part under way: its verdict came over a doubtful link."""
        self.fault = cause
        self._last_beat_ns = None
        self._beats = 0
        self._beats_needed = self._settings.rearm_heartbeats
        self._condemn(cause)

    def _condemn(self, cause: Cause) -> None:
        for part in self._parts.values():
            part.fault = part.fault or cause

    def _go_offline(self, cause: Cause) -> None:
        self._online = False
        self._trip(cause)

    def _adopt(self, session_id: str) -> None:
        """A new daemon session: the old one is done for good, the new one owes a heartbeat."""
        if self.session_id is not None:
            self._retired.append(self.session_id)
        self._trip(Cause.SESSION_CHANGED)
        self.fault = Cause.NO_HEARTBEAT
        self.session_id = session_id
        self._online = True
        self._last_beat_seq = -1
        self._decision_seq = 0
        self._beats_needed = 1

    def _concerned(self, trigger_id: str | None, part_id: str | None) -> list[_Part]:
        parts = self._parts.values()
        return [p for p in parts if p.trigger_id == trigger_id or p.part_id == part_id]

    def _condemn_malformed(self, error: MalformedMessageError) -> None:
        """Garbage without an id may have been about any part, so it condemns them all."""
        self.malformed += 1
        anonymous = error.trigger_id is None and error.part_id is None
        concerned = self._concerned(error.trigger_id, error.part_id)
        for part in list(self._parts.values()) if anonymous else concerned:
            part.fault = part.fault or Cause.MALFORMED_DECISION


def _objection(part: _Part, message: DecisionMessage, now: int, retained: bool) -> Cause | None:
    ids = (message.trigger_id, message.part_id, message.session_id)
    if ids != (part.trigger_id, part.part_id, part.session_id):
        return Cause.MISMATCHED_ID
    if retained:  # decisions are never retained: this one is a replay
        return Cause.MALFORMED_DECISION
    if now >= part.gate_ns:
        return Cause.LATE_DECISION
    return None if _shows(part, message, now) else Cause.LATE_EXPOSURE


def _shows(part: _Part, message: DecisionMessage, now: int) -> bool:
    """Whether a `pass` rests on a picture taken while the part stood before the camera.

    A trigger that the network delayed gets a picture of the next part. No clock is shared: the
    daemon says how old its picture was when it spoke, on its own clock; the message travelled
    at least for no time; so the PLC knows on its clock the latest moment of the exposure.
    """
    if part.leaves_ns is None or message.verdict is not Verdict.PASS:
        return True
    if message.t_exposure_ns is None or message.t_publish_ns is None:
        return False
    exposed_ns = now - (message.t_publish_ns - message.t_exposure_ns)
    return part.t_trigger_ns <= exposed_ns <= part.leaves_ns
