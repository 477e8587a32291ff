"""The reject gate: nothing but one matching, in-time, believable pass opens it."""

from __future__ import annotations

import math
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gate_events import MS, SETTINGS, decision, heartbeat, raw, state

from metal_edge.daemon.clock import ClockState
from metal_edge.daemon.mqtt.messages import Identity, Now, decision_payload, encode, state_payload
from metal_edge.demo.gate import Cause, GateRecord, RejectGate
from metal_edge.demo.gate_messages import (
    MAX_PAYLOAD_BYTES,
    MalformedMessageError,
    parse_decision,
    parse_state,
)
from metal_edge.domain import Decision, Trigger, Verdict


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
    ("arrival_ms", "age_ms", "cause"),
    [
        (20, 20, Cause.PASS_VERDICT),  # exposed at the trigger
        (120, 20, Cause.PASS_VERDICT),  # exposed as the part leaves
        (121, 20, Cause.LATE_EXPOSURE),  # the trigger was late, so it shows the next part
        (19, 20, Cause.LATE_EXPOSURE),  # exposed before the part came
        (121, 21, Cause.PASS_VERDICT),
        (120, -3_600_000, Cause.LATE_EXPOSURE),  # the daemon's clock stepped in between
        (120, 3_600_000, Cause.LATE_EXPOSURE),
        (120, None, Cause.LATE_EXPOSURE),
    ],
)
def test_a_pass_rests_on_a_picture_taken_while_the_part_stood_there(
    arrival_ms: int, age_ms: int | None, cause: Cause
) -> None:
    gate = armed()
    gate.on_trigger("T-1", "P-1", 0, 400 * MS, leaves_ns=100 * MS)
    said = 10**18
    exposed = None if age_ms is None else said - age_ms * MS
    payload = raw(decision(t_publish_ns=said, t_exposure_ns=exposed))
    gate.on_decision(payload, arrival_ms * MS)
    assert gate.at_gate("T-1", 400 * MS).cause is cause


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


def test_an_echo_names_the_last_decision_of_the_session_that_was_heard() -> None:
    """Believed or late, but not unreadable, replayed, or another session's; a new one begins."""
    gate, beats = gate_with_part(), count(1)

    def named(session: str = "S1") -> int:
        echo = gate.on_heartbeat(heartbeat(next(beats), session), 100 * MS)
        assert echo is not None
        return echo.decision_seq

    assert named() == 0
    gate.on_decision(raw(decision(seq=9)), 100 * MS, retained=True)
    gate.on_decision(raw(decision(seq=9, session_id="S0")), 100 * MS)
    gate.on_decision(raw(decision(seq=9, schema=2)), 100 * MS)
    assert named() == 0
    gate.on_decision(raw(decision(seq=4, trigger_id="gone", part_id="gone")), 100 * MS)
    gate.on_decision(raw(decision(seq=3)), 100 * MS)
    assert named() == 4
    gate.on_state(state("S2"), 100 * MS)
    assert named("S2") == 0


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
