"""The reject gate: nothing but one matching, in-time, believable pass opens it."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from metal_edge.daemon.clock import ClockState
from metal_edge.daemon.messages import Identity, Now, decision_payload, encode, state_payload
from metal_edge.demo.gate import Cause, GateRecord, GateSettings, RejectGate
from metal_edge.demo.gate_messages import (
    MAX_PAYLOAD_BYTES,
    MalformedMessageError,
    parse_decision,
    parse_state,
)
from metal_edge.domain import Decision, Trigger, Verdict

MS = 1_000_000
SETTINGS = GateSettings(heartbeat_timeout_ns=600 * MS, rearm_heartbeats=3)


def decision(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "schema": 1,
        "event_id": "e-1",
        "session_id": "S1",
        "seq": 1,
        "part_id": "P-1",
        "trigger_id": "T-1",
        "frame_id": "f",
        "camera_id": "cam0",
        "verdict": "pass",
        "reason": "below_threshold",
        "score": 0.25,
        "threshold": 0.5,
        "regions": [],
        "t_exposure_ns": 1_700_000_000_000_000_000,
        "latency_ms": {"grab": 1.0, "infer": 2.0, "post": 0.5},
    }
    return fields | changes


def raw(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def heartbeat(seq: int, session: str = "S1", healthy: Any = True) -> bytes:
    return raw({"session_id": session, "seq": seq, "healthy": healthy})


def state(session: str = "S1", status: str = "online") -> bytes:
    return raw({"session_id": session, "status": status})


def armed(now: int = 0) -> RejectGate:
    gate = RejectGate(SETTINGS)
    gate.on_state(state(), now)
    gate.on_heartbeat(heartbeat(0), now)
    return gate


def gate_with_part() -> RejectGate:
    """Armed, part P-1 at the photo-eye at 0 ms and at the gate at 400 ms."""
    gate = armed()
    gate.on_trigger("T-1", "P-1", 0, 400 * MS)
    return gate


def outcome(*messages: bytes, at_ms: float = 100) -> GateRecord:
    gate = gate_with_part()
    for message in messages:
        gate.on_decision(message, int(at_ms * MS))
    return gate.at_gate("T-1", 400 * MS)


def test_a_proper_pass_opens_the_gate() -> None:
    record = outcome(raw(decision()))
    assert record.passed
    assert (record.message and record.message.score, record.arrival_ns) == (0.25, 100 * MS)


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        ([decision(verdict="reject", score=0.7)], Cause.REJECT_VERDICT),
        ([decision(verdict="unknown", score=None, threshold=None)], Cause.UNKNOWN_VERDICT),
        ([], Cause.NO_DECISION),
        ([decision(part_id="P-2", trigger_id="T-2")], Cause.NO_DECISION),
        ([decision(part_id="P-2")], Cause.MISMATCHED_ID),
        ([decision(trigger_id="T-0")], Cause.MISMATCHED_ID),
        ([decision(session_id="S0")], Cause.MISMATCHED_ID),
        ([decision(session_id="S0"), decision()], Cause.MISMATCHED_ID),
        ([decision(), decision()], Cause.DUPLICATE_DECISION),
        ([decision(), decision(verdict="reject")], Cause.CONTRADICTORY_DECISIONS),
        ([decision(verdict="reject"), decision()], Cause.CONTRADICTORY_DECISIONS),
        ([decision(score=0.5)], Cause.MALFORMED_DECISION),
        ([decision(score=None)], Cause.MALFORMED_DECISION),
        ([decision(threshold=None)], Cause.MALFORMED_DECISION),
        ([decision(score=math.nan)], Cause.MALFORMED_DECISION),
        ([decision(score=-math.inf)], Cause.MALFORMED_DECISION),
        ([decision(threshold=math.inf)], Cause.MALFORMED_DECISION),
        ([decision(threshold=10**400)], Cause.MALFORMED_DECISION),
        ([decision(score=False)], Cause.MALFORMED_DECISION),
        ([decision(score="0.1")], Cause.MALFORMED_DECISION),
        ([decision(latency_ms={"grab": math.nan})], Cause.MALFORMED_DECISION),
        ([decision(verdict="PASS")], Cause.MALFORMED_DECISION),
        ([decision(verdict=["pass"])], Cause.MALFORMED_DECISION),
        ([decision(schema=2)], Cause.MALFORMED_DECISION),
        ([decision(schema=True)], Cause.MALFORMED_DECISION),
        ([decision(seq=-1)], Cause.MALFORMED_DECISION),
        ([decision(t_exposure_ns=1.5)], Cause.MALFORMED_DECISION),
        ([decision(padding="x" * MAX_PAYLOAD_BYTES)], Cause.MALFORMED_DECISION),
    ],
)
def test_anything_else_keeps_it_shut(messages: list[dict[str, Any]], cause: Cause) -> None:
    record = outcome(*map(raw, messages))
    assert record.cause is cause
    assert not record.passed


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\xff\xfe",
        b"pass",
        b"[]",
        b"[" * 60_000,
        b'{"score": 1' + b"0" * 5000 + b"}",
        raw(decision()).replace(b'"verdict": "pass"', b'"verdict": "reject", "verdict": "pass"'),
    ],
    ids=["empty", "bytes", "word", "list", "deep", "digits", "repeated key"],
)
def test_junk_without_an_id_condemns_what_is_under_way(junk: bytes) -> None:
    assert outcome(junk, raw(decision())).cause is Cause.MALFORMED_DECISION


def test_in_time_ends_exactly_at_the_gate() -> None:
    gate = gate_with_part()
    gate.on_decision(raw(decision()), 400 * MS - 1)
    assert gate.at_gate("T-1", 400 * MS).passed
    gate = gate_with_part()
    gate.on_decision(raw(decision()), 400 * MS)
    assert gate.at_gate("T-1", 400 * MS).cause is Cause.LATE_DECISION


def test_a_decision_after_the_gate_is_handed_back_and_counts_for_nothing() -> None:
    gate = gate_with_part()
    assert gate.at_gate("T-1", 400 * MS).cause is Cause.NO_DECISION
    late = gate.on_decision(raw(decision()), 450 * MS)
    assert late is not None
    assert (late.trigger_id, late.arrival_ns) == ("T-1", 450 * MS)
    assert gate.on_decision(raw(decision(trigger_id="T-9")), 450 * MS) is None
    assert gate.stray == 1


def test_a_decision_ahead_of_its_trigger_is_not_remembered() -> None:
    gate = armed()
    gate.on_decision(raw(decision()), 0)
    gate.on_trigger("T-1", "P-1", 1, 400 * MS)
    assert gate.at_gate("T-1", 400 * MS).cause is Cause.NO_DECISION


def test_a_retained_decision_is_a_replay() -> None:
    gate = gate_with_part()
    gate.on_decision(raw(decision()), 100 * MS, retained=True)
    assert gate.at_gate("T-1", 400 * MS).cause is Cause.MALFORMED_DECISION


def test_one_mixed_up_decision_condemns_both_parts() -> None:
    gate = gate_with_part()
    gate.on_trigger("T-2", "P-2", 50 * MS, 450 * MS)
    gate.on_decision(raw(decision(part_id="P-2")), 100 * MS)
    for index, when in ((1, 400), (2, 450)):
        assert gate.at_gate(f"T-{index}", when * MS).cause is Cause.MISMATCHED_ID


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (lambda g: g.on_state(state(status="offline"), 200 * MS), Cause.DAEMON_OFFLINE),
        (lambda g: g.on_state(b"", 200 * MS), Cause.DAEMON_OFFLINE),
        (lambda g: g.on_state(state(status="stopping"), 200 * MS), Cause.DAEMON_OFFLINE),
        (lambda g: g.on_state(state("S2"), 200 * MS), Cause.SESSION_CHANGED),
        (lambda g: g.on_heartbeat(heartbeat(1, healthy=False), 200 * MS), Cause.DAEMON_UNHEALTHY),
        (lambda g: g.on_heartbeat(heartbeat(1, healthy=1), 200 * MS), Cause.DAEMON_UNHEALTHY),
        (lambda g: g.on_broker_lost(200 * MS), Cause.BROKER_LOST),
    ],
)
def test_losing_the_daemon_rejects_a_part_already_passed(event: Any, cause: Cause) -> None:
    gate = gate_with_part()
    gate.on_decision(raw(decision()), 100 * MS)
    event(gate)
    assert gate.at_gate("T-1", 400 * MS).cause is cause


@pytest.mark.parametrize("status", ["online", "degraded"])
def test_a_living_daemon_that_repeats_its_state_changes_nothing(status: str) -> None:
    gate = gate_with_part()
    gate.on_decision(raw(decision()), 100 * MS)
    gate.on_state(state(status=status), 200 * MS)
    assert gate.at_gate("T-1", 400 * MS).passed


def test_the_heartbeat_runs_out_after_three_periods_and_no_sooner() -> None:
    for silence_ns, cause in (
        (600 * MS, Cause.PASS_VERDICT),
        (600 * MS + 1, Cause.NO_HEARTBEAT),
    ):
        gate = armed()
        gate.on_trigger("T-1", "P-1", 1, silence_ns)
        gate.on_decision(raw(decision()), 2)
        assert gate.at_gate("T-1", silence_ns).cause is cause


@pytest.mark.parametrize(
    "beat", [heartbeat(0), heartbeat(9, session="S0"), b"{}", raw({"seq": 5, "healthy": True})]
)
def test_a_replayed_or_foreign_heartbeat_does_not_count(beat: bytes) -> None:
    gate = gate_with_part()
    gate.on_heartbeat(beat, 300 * MS)
    gate.on_trigger("T-2", "P-2", 550 * MS, 650 * MS)
    gate.on_decision(raw(decision(trigger_id="T-2", part_id="P-2")), 560 * MS)
    assert gate.at_gate("T-2", 650 * MS).cause is Cause.NO_HEARTBEAT


def test_a_retained_heartbeat_says_nothing_of_now() -> None:
    gate = RejectGate(SETTINGS)
    gate.on_state(state(), 0)
    gate.on_heartbeat(heartbeat(0), 0, retained=True)
    assert gate.fault is Cause.NO_HEARTBEAT


def test_after_a_trip_three_fresh_heartbeats_in_a_row_rearm() -> None:
    gate = armed()
    gate.on_heartbeat(heartbeat(1), 1000 * MS)  # trips on the gap, counts as the first of three
    assert gate.fault is Cause.NO_HEARTBEAT
    gate.on_heartbeat(heartbeat(2), 1200 * MS)
    gate.on_heartbeat(heartbeat(2), 1300 * MS)  # a copy
    assert gate.fault is Cause.NO_HEARTBEAT
    gate.on_heartbeat(heartbeat(3), 1400 * MS)
    assert gate.fault is None


def test_an_interrupted_row_of_heartbeats_begins_again() -> None:
    gate = armed()
    gate.on_heartbeat(heartbeat(1), 1000 * MS)
    gate.on_heartbeat(heartbeat(2), 1200 * MS)
    gate.on_heartbeat(heartbeat(3, healthy=False), 1400 * MS)
    gate.on_heartbeat(heartbeat(4), 1600 * MS)
    gate.on_heartbeat(heartbeat(5), 1800 * MS)
    assert gate.fault is Cause.DAEMON_UNHEALTHY
    gate.on_heartbeat(heartbeat(6), 2000 * MS)
    assert gate.fault is None


def test_a_part_triggered_while_tripped_stays_condemned() -> None:
    gate = RejectGate(SETTINGS)
    gate.on_trigger("T-1", "P-1", 0, 400 * MS)
    gate.on_state(state(), 10 * MS)
    gate.on_heartbeat(heartbeat(0), 20 * MS)
    assert gate.fault is None
    gate.on_decision(raw(decision()), 100 * MS)
    assert gate.at_gate("T-1", 400 * MS).cause is Cause.DAEMON_OFFLINE


def test_a_new_session_needs_one_heartbeat_and_the_old_one_never_returns() -> None:
    gate = armed()
    gate.on_state(state("S2"), 10 * MS)
    assert gate.fault is Cause.NO_HEARTBEAT
    gate.on_heartbeat(heartbeat(0, "S2"), 20 * MS)
    assert gate.fault is None
    gate.on_state(state("S1", "offline"), 30 * MS)  # the last will of the old one, late
    gate.on_state(state("S1"), 40 * MS)
    assert (gate.fault, gate.session_id) == (None, "S2")


def test_misuse_is_refused() -> None:
    gate = gate_with_part()
    with pytest.raises(ValueError, match="no part"):
        gate.at_gate("T-1", 400 * MS - 1)
    with pytest.raises(ValueError, match="not new"):
        gate.on_trigger("T-2", "P-1", 1, 500 * MS)
    gate.at_gate("T-1", 400 * MS)
    with pytest.raises(ValueError, match="no part"):
        gate.at_gate("T-1", 401 * MS)
    with pytest.raises(ValueError, match="not new"):
        gate.on_trigger("T-1", "P-1", 401 * MS, 500 * MS)


def test_the_gate_reads_what_the_daemon_writes() -> None:
    identity = Identity("metal/v1/e/s/a/l/st", "S1", "cam0", "m", "1", "0" * 64, "onnxruntime")
    trigger = Trigger("T-1", "P-1", 0, 350 * MS)
    made = Decision(
        Verdict.PASS, "below_threshold", trigger, 1, "f", "cam0", score=0.25, threshold=0.5
    )
    payload = decision_payload(made, identity, Now(0, 0), ClockState(True, 0.0))
    assert outcome(encode(payload)).passed
    for status, alive in (("online", True), ("degraded", True), ("offline", False)):
        assert parse_state(encode(state_payload(status, identity, None))) == ("S1", alive)


_values = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**70)
    | st.floats()
    | st.sampled_from(("", "pass", "reject", "1", [], {}))
)
_decisions = st.dictionaries(st.sampled_from(sorted(decision())), _values, max_size=3)


@given(st.binary(max_size=50) | _decisions.map(lambda changes: raw(decision(**changes))))
def test_the_parser_believes_only_finite_scores_below_finite_thresholds(payload: bytes) -> None:
    try:
        message = parse_decision(payload)
    except MalformedMessageError:
        return
    if message.verdict is Verdict.PASS:
        assert message.score is not None
        assert message.threshold is not None
        assert math.isfinite(message.score)
        assert math.isfinite(message.threshold)
        assert message.score < message.threshold


# --- any sequence of events -----------------------------------------------------------------

CORRUPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "reject": {"verdict": "reject"},
    "unknown": {"verdict": "unknown", "score": None, "threshold": None},
    "nan": {"score": math.nan},
    "above": {"score": 0.9},
    "schema": {"schema": 2},
    "foreign part": {"part_id": "P-elsewhere"},
    "foreign trigger": {"trigger_id": "T-elsewhere"},
    "foreign session": {"session_id": "S9"},
    "giant": {"padding": "x" * MAX_PAYLOAD_BYTES},
}


# method and arguments of AnySequence; a proper decision and time come up most often
EVENTS = st.one_of(
    st.just(("decide", (0, 0, "none", False))),
    st.just(("good_heartbeat", ())),
    st.tuples(st.just("time_passes"), st.tuples(st.sampled_from((0, 250, 499, 500, 600, 601)))),
    st.sampled_from(
        [
            ("decide", (0, 1, "none", False)),
            ("decide", (0, 0, "none", True)),
            ("heartbeats", (0, 1, False, False)),
            ("heartbeats", (0, 1, True, True)),
            ("heartbeats", (1, 1, True, False)),
            ("broker_lost", ()),
            ("restart", (True,)),
            ("states", (0, "offline")),
            ("states", (1, "online")),
            *(("decide", (0, 0, corruption, False)) for corruption in CORRUPTIONS),
        ]
    ),
)


@dataclass
class Happening:
    """One event as the outside world saw it."""

    now: int
    kind: str
    session: str = ""
    seq: int = -1
    good: bool = True
    trigger_id: str = ""
    part_id: str = ""
    gate_ns: int = 0


class AnySequence(RuleBasedStateMachine):
    """Sends everything, and asks of every part let go whether history justifies it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = RejectGate(SETTINGS)
        self.now = 0
        self.seq = 0
        self.parts = 0
        self.sessions = ["S1"]
        self.history: list[Happening] = []

    def session(self, age: int) -> str:
        """The newest daemon session, or one `age` restarts before it."""
        return self.sessions[max(0, len(self.sessions) - 1 - age)]

    def note(self, kind: str, **what: Any) -> None:
        self.history.append(Happening(self.now, kind, **what))

    @rule(beat=st.booleans())
    def restart(self, beat: bool) -> None:
        self.sessions.append(f"S{len(self.sessions) + 1}")
        self.states(0, "online")
        if beat:
            self.good_heartbeat()

    @rule(milliseconds=st.integers(0, 500))
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds * MS

    @rule(age=st.integers(0, 2), status=st.sampled_from(("online", "offline")))
    def states(self, age: int, status: str) -> None:
        session = self.session(age)
        self.gate.on_state(state(session, status), self.now)
        self.note("state", session=session, good=status == "online")

    @rule()
    def good_heartbeat(self) -> None:
        self.heartbeats(0, 1, True, False)

    @rule(
        age=st.integers(0, 2),
        step=st.integers(-1, 1),
        healthy=st.sampled_from((True, False, 1, "true", None)),
        retained=st.booleans(),
    )
    def heartbeats(self, age: int, step: int, healthy: Any, retained: bool) -> None:
        session = self.session(age)
        self.seq = max(0, self.seq + step)
        self.gate.on_heartbeat(heartbeat(self.seq, session, healthy), self.now, retained=retained)
        kind = "replay" if retained else "heartbeat"
        self.note(kind, session=session, seq=self.seq, good=healthy is True)

    @rule()
    def broker_lost(self) -> None:
        self.gate.on_broker_lost(self.now)
        self.note("lost")

    @rule(delay_ms=st.integers(0, 900))
    def trigger(self, delay_ms: int) -> None:
        self.parts += 1
        ids = {"trigger_id": f"T-{self.parts}", "part_id": f"P-{self.parts}"}
        gate_ns = self.now + delay_ms * MS
        self.gate.on_trigger(**ids, now=self.now, gate_ns=gate_ns)
        self.note("trigger", gate_ns=gate_ns, **ids)

    @precondition(lambda self: self.parts > 0)
    @rule(
        back=st.integers(0, 2),
        age=st.integers(0, 2),
        corruption=st.sampled_from(sorted(CORRUPTIONS)) | st.just("none"),
        retained=st.sampled_from((False, False, False, True)),
    )
    def decide(self, back: int, age: int, corruption: str, retained: bool) -> None:
        number = max(1, self.parts - back)
        fields = decision(
            trigger_id=f"T-{number}", part_id=f"P-{number}", session_id=self.session(age)
        )
        fields |= CORRUPTIONS[corruption]
        self.gate.on_decision(raw(fields), self.now, retained=retained)
        giant = corruption == "giant"  # too large to be read, so it may be about any part
        self.note(
            "decision",
            session=fields["session_id"],
            trigger_id="*" if giant else fields["trigger_id"],
            part_id="*" if giant else fields["part_id"],
            good=corruption == "none" and not retained,
        )

    @rule(oversleep_ms=st.sampled_from((0, 0, 0, 5, 700)))
    def next_part_at_the_gate(self, oversleep_ms: int) -> None:
        done = {h.trigger_id for h in self.history if h.kind == "gate"}
        waiting = [h for h in self.history if h.kind == "trigger" and h.trigger_id not in done]
        if not waiting:
            return
        part = min(waiting, key=lambda h: h.gate_ns)
        self.now = max(self.now, part.gate_ns + oversleep_ms * MS)
        record = self.gate.at_gate(part.trigger_id, self.now)
        if record.passed:
            self.justify(part)
        self.note("gate", trigger_id=part.trigger_id)

    @rule(events=st.lists(EVENTS, min_size=1, max_size=4))
    def a_part_on_a_ready_line(self, events: list[tuple[str, Any]]) -> None:
        """Random walks alone rarely come near a pass; this starts one step before it."""
        self.restart(True)
        self.trigger(500)  # within the heartbeat timeout
        for name, arguments in events:
            getattr(self, name)(*arguments)
        done = sum(h.kind == "gate" for h in self.history)
        for _ in range(self.parts - done):
            self.next_part_at_the_gate(0)

    def justify(self, part: Happening) -> None:
        start = self.history.index(part)
        before, during = self.history[:start], self.history[start:]
        about = [
            h
            for h in during
            if h.kind == "decision"
            and (h.trigger_id in (part.trigger_id, "*") or h.part_id in (part.part_id, "*"))
        ]
        assert len(about) == 1, "exactly one decision concerned the part"
        only = about[0]
        assert only.good
        assert (only.trigger_id, only.part_id) == (part.trigger_id, part.part_id)
        assert only.now < part.gate_ns, "in time"
        self.justify_link(before, during, only.session)

    def justify_link(self, before: list[Happening], during: list[Happening], session: str) -> None:
        births = [h for h in before if h.kind == "state" and h.good and h.session == session]
        assert births, "the daemon was seen online before the trigger"
        assert not any(h.kind == "lost" for h in during)
        own = [h for h in during if h.session == session]
        assert not any(h.kind == "state" and not h.good for h in own), "it did not go offline"
        assert not any(h.kind == "heartbeat" and not h.good and self.fresh(h) for h in own)
        beats = [
            h.now
            for h in before + during
            if h.kind == "heartbeat" and h.good and h.session == session
        ]
        assert beats, "at least one heartbeat"
        first = max(b for b in beats if b <= during[0].now)
        chain = [first, *(b for b in beats if b > first), self.now]
        gaps = [later - earlier for earlier, later in itertools.pairwise(chain)]
        assert max(gaps) <= SETTINGS.heartbeat_timeout_ns, "never silent for three periods"

    def fresh(self, beat: Happening) -> bool:
        """Its number is above all before it: otherwise the gate takes it for a replay."""
        index = next(i for i, h in enumerate(self.history) if h is beat)
        return all(
            h.seq < beat.seq
            for h in self.history[:index]
            if h.kind == "heartbeat" and h.session == beat.session
        )


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no defect of the gate
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_whatever_befalls_a_part_on_a_ready_line(events: list[tuple[str, Any]]) -> None:
    AnySequence().a_part_on_a_ready_line(events)
