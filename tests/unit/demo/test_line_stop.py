"""The latch that stops the line: what stops it, and who may start it again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.demo.gate import Cause, GateRecord
from metal_edge.demo.line_stop import (
    TRANSITIONS,
    LineEvent,
    LineState,
    LineStop,
    StopSettings,
)
from metal_edge.errors import SettingsError

S = 1_000_000_000
SETTINGS = StopSettings(after_ns=10 * S, after_rejects=3, golden=("good", "bad"))
PAGE = Path(__file__).parents[3] / "docs" / "fail-safe.md"


def record(cause: Cause, golden: bool = False) -> GateRecord:
    return GateRecord("P", "T", 0, 0, cause, None, None, golden)


def link(
    latch: LineStop, now: int, session: str = "S1", fault: Cause | None = None, empty: bool = True
) -> LineState:
    latch.on_link(fault, session, now, belt_empty=empty)
    return latch.state


def stopped(settings: StopSettings = SETTINGS) -> LineStop:
    """Stopped by the silence of session S1."""
    latch = LineStop(settings)
    link(latch, 0)
    link(latch, 1 * S, fault=Cause.NO_HEARTBEAT)
    assert link(latch, 11 * S, fault=Cause.NO_HEARTBEAT) is LineState.STOPPED
    return latch


def golden(latch: LineStop, *causes: Cause) -> LineState:
    for cause in causes:
        latch.on_record(record(cause, golden=True))
    return latch.state


def test_the_documented_table_is_the_one_that_runs() -> None:
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \| (\w+) \|$", PAGE.read_text(), re.MULTILINE)
    states = {state.value for state in LineState}
    documented = {(a, event): b for a, event, b in rows if a in states}
    assert documented == {(a.value, e.value): b.value for (a, e), b in TRANSITIONS.items()}


def test_the_link_may_be_down_for_just_less_than_the_limit() -> None:
    latch = LineStop(SETTINGS)
    assert link(latch, 0, fault=Cause.BROKER_LOST) is LineState.RUNNING
    assert latch.due_ns() == 10 * S
    assert link(latch, 10 * S - 1, fault=Cause.NO_HEARTBEAT) is LineState.RUNNING
    assert link(latch, 10 * S) is LineState.RUNNING  # armed again: the count begins anew
    assert link(latch, 19 * S, fault=Cause.BROKER_LOST) is LineState.RUNNING
    assert link(latch, 29 * S, fault=Cause.BROKER_LOST) is LineState.STOPPED
    assert latch.why is LineEvent.LINK_DOWN_TOO_LONG


def test_only_rejects_in_a_row_count() -> None:
    latch = LineStop(SETTINGS)
    for cause in (Cause.REJECT_VERDICT, Cause.NO_DECISION, Cause.PASS_VERDICT) * 3:
        latch.on_record(record(cause))
    assert latch.state is LineState.RUNNING
    for _ in range(3):
        latch.on_record(record(Cause.UNKNOWN_VERDICT))
    assert latch.state is LineState.STOPPED
    assert latch.why is LineEvent.TOO_MANY_REJECTS


def test_the_session_that_failed_is_not_let_in_by_coming_back() -> None:
    latch = stopped()
    assert link(latch, 12 * S, "S1") is LineState.STOPPED


def test_a_new_session_is_let_in_by_both_golden_parts() -> None:
    latch = stopped()
    assert link(latch, 12 * S, "S2", empty=False) is LineState.STOPPED
    assert link(latch, 13 * S, "S2") is LineState.CHECKING
    assert golden(latch, Cause.PASS_VERDICT) is LineState.CHECKING
    assert golden(latch, Cause.REJECT_VERDICT) is LineState.RUNNING


@pytest.mark.parametrize(
    "causes",
    [
        (Cause.REJECT_VERDICT,),
        (Cause.PASS_VERDICT, Cause.PASS_VERDICT),
        (Cause.PASS_VERDICT, Cause.UNKNOWN_VERDICT),
        (Cause.PASS_VERDICT, Cause.LATE_DECISION),
        (Cause.NO_DECISION,),
    ],
)
def test_a_session_that_misjudges_a_golden_part_is_out_for_good(causes: tuple[Cause, ...]) -> None:
    latch = stopped()
    link(latch, 12 * S, "S2")
    assert golden(latch, *causes) is LineState.STOPPED
    assert link(latch, 13 * S, "S2") is LineState.STOPPED
    assert link(latch, 14 * S, "S3") is LineState.CHECKING


def test_a_link_lost_during_the_check_begins_it_again() -> None:
    latch = stopped()
    link(latch, 12 * S, "S2")
    golden(latch, Cause.PASS_VERDICT)
    assert link(latch, 13 * S, "S2", Cause.NO_HEARTBEAT) is LineState.STOPPED
    assert golden(latch, Cause.REJECT_VERDICT) is LineState.STOPPED  # of the check given up
    assert link(latch, 14 * S, "S2") is LineState.CHECKING
    assert golden(latch, Cause.REJECT_VERDICT) is LineState.STOPPED  # the good one comes first


def test_the_operator_needs_an_armed_link() -> None:
    latch = stopped()
    latch.on_operator(Cause.NO_HEARTBEAT)
    assert latch.state is LineState.STOPPED
    latch.on_operator(None)
    assert latch.state is LineState.RUNNING


def test_what_is_switched_off_does_nothing() -> None:
    latch = stopped(StopSettings(10 * S, None, golden=None, operator=False))
    latch.on_operator(None)
    assert link(latch, 12 * S, "S2") is LineState.STOPPED
    latch = LineStop(StopSettings(None, None))
    for _ in range(1000):
        latch.on_record(record(Cause.NO_DECISION))
    assert link(latch, 10**6 * S, fault=Cause.BROKER_LOST) is LineState.RUNNING


def test_settings_that_prove_nothing_are_refused() -> None:
    for bad in ({"after_ns": -1}, {"after_rejects": 0}, {"golden": ("a", "a")}):
        with pytest.raises(SettingsError):
            StopSettings(**bad)  # type: ignore[arg-type]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("link"), st.booleans(), st.sampled_from(("S1", "S2", "S3"))),
        st.tuples(st.just("part"), st.sampled_from(list(Cause)), st.booleans()),
        st.tuples(st.just("operator"), st.booleans(), st.just(None)),
        st.tuples(st.just("time"), st.sampled_from((1, 9, 11)), st.just(None)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_a_stopped_line_runs_only_after_an_operator_or_two_right_golden_parts(
    events: list[tuple[str, object, object]],
) -> None:
    latch, now, armed = LineStop(SETTINGS), 0, False
    since_check: list[Cause] = []
    for kind, what, more in events:
        before = latch.state
        if kind == "time":
            now += int(str(what)) * S
        elif kind == "link":
            armed = bool(what)
            link(latch, now, str(more), None if armed else Cause.NO_HEARTBEAT)
        elif kind == "part":
            assert isinstance(what, Cause)
            latch.on_record(record(what, golden=bool(more)))
            since_check += [what] if more else []
        else:
            latch.on_operator(None if what else Cause.NO_HEARTBEAT)
        if before is not LineState.RUNNING and latch.state is LineState.RUNNING:
            golden_right = since_check[-2:] == [Cause.PASS_VERDICT, Cause.REJECT_VERDICT]
            assert (kind == "operator" and what) or (before is LineState.CHECKING and golden_right)
        if before is LineState.STOPPED and latch.state is LineState.CHECKING:
            since_check = []
