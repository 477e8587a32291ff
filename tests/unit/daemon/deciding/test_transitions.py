"""The state table: total, and no way around `held`. Exhaustive where it is finite."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.deciding.decision import Reason
from metal_edge.daemon.deciding.transitions import (
    TABLE,
    WITHHELD,
    Event,
    State,
    may_pass,
    next_state,
    release,
)
from metal_edge.domain import Decision, Trigger, Verdict

PASSING = {State.ARMED, State.DEGRADED}
OBSERVED_ABLE = {Event.WELL, Event.PROBLEM}
TRIGGER = Trigger("t", "p", 0, 1)


def decision(verdict: Verdict) -> Decision:
    return Decision(verdict, Reason.OK, TRIGGER, 0, score=0.1, threshold=0.5)


def test_every_pair_is_in_the_table() -> None:
    assert set(TABLE) == set(product(State, Event))


def test_only_armed_and_degraded_let_parts_go() -> None:
    assert {state for state in State if may_pass(state)} == PASSING
    assert set(WITHHELD) == set(State) - PASSING


@pytest.mark.parametrize("state", State)
def test_a_pass_leaves_only_where_parts_may_go(state: State) -> None:
    out = release(state, decision(Verdict.PASS))
    if state in PASSING:
        assert out == decision(Verdict.PASS)
    else:
        assert (out.verdict, out.reason) == (Verdict.UNKNOWN, WITHHELD[state])
        assert out.score == 0.1  # what was found is told all the same


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.UNKNOWN])
def test_what_does_not_pass_keeps_its_own_reason(state: State, verdict: Verdict) -> None:
    assert release(state, decision(verdict)) == decision(verdict)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", [Event.FAULT, Event.DISARM, Event.CHANGE, Event.STOP])
def test_what_takes_the_right_to_pass_takes_it_from_every_state(state: State, event: Event) -> None:
    assert not may_pass(next_state(state, event))


@pytest.mark.parametrize("state", sorted(set(State) - PASSING))
@pytest.mark.parametrize("event", Event)
def test_parts_go_again_only_after_the_line_was_proven_or_seen_to_be_able(
    state: State, event: Event
) -> None:
    if may_pass(next_state(state, event)):
        assert (state, event) == (State.STARTING, Event.READY) or (
            state is State.HELD and event in OBSERVED_ABLE
        )


@pytest.mark.parametrize("state", sorted(PASSING))
@pytest.mark.parametrize("event", Event)
def test_a_new_model_is_held_until_it_was_seen_to_be_able(state: State, event: Event) -> None:
    if event in {Event.CHANGED, Event.CHANGE_FAILED}:
        assert next_state(state, event) is State.HELD


def test_only_the_proof_or_the_end_leads_out_of_starting() -> None:
    for event in set(Event) - {Event.READY, Event.STOP}:
        assert next_state(State.STARTING, event) is State.STARTING


@pytest.mark.parametrize("state", [State.ARMED, State.DEGRADED, State.HELD])
def test_a_line_at_work_is_what_it_was_last_seen_to_be(state: State) -> None:
    after = {
        Event.WELL: State.ARMED,
        Event.PROBLEM: State.DEGRADED,
        Event.FAULT: State.HELD,
        Event.DISARM: State.DISARMED,
        Event.CHANGE: State.CHANGING,
        Event.CHANGED: State.HELD,
        Event.CHANGE_FAILED: State.HELD,
    }
    for event in set(Event) - {Event.STOP}:
        assert next_state(state, event) is after.get(event, state)


def test_the_proof_arms_and_the_end_stops() -> None:
    assert next_state(State.STARTING, Event.READY) is State.ARMED
    assert {next_state(state, Event.STOP) for state in State} == {State.STOPPING}


def test_stopping_is_for_good() -> None:
    assert {next_state(State.STOPPING, event) for event in Event} == {State.STOPPING}


def test_only_an_order_to_arm_or_stop_ends_disarmed() -> None:
    for event in set(Event) - {Event.ARM, Event.STOP}:
        assert next_state(State.DISARMED, event) is State.DISARMED
    assert next_state(State.DISARMED, Event.ARM) is State.HELD


def test_a_changeover_is_ended_by_its_own_result_or_by_an_order() -> None:
    for event in Event:
        after = next_state(State.CHANGING, event)
        ends = {
            Event.CHANGED: State.HELD,
            Event.CHANGE_FAILED: State.HELD,
            Event.DISARM: State.DISARMED,
            Event.STOP: State.STOPPING,
        }
        assert after is ends.get(event, State.CHANGING)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_to_hear_it_twice_is_to_hear_it_once(state: State, event: Event) -> None:
    """MQTT delivers commands at least once, and observations come at every heartbeat."""
    once = next_state(state, event)
    assert next_state(once, event) is once


@pytest.mark.parametrize("state", State)
def test_every_state_but_the_last_can_reach_armed(state: State) -> None:
    reached = {state}
    while True:
        further = reached | {next_state(s, e) for s in reached for e in Event}
        if further == reached:
            break
        reached = further
    assert (State.ARMED in reached) == (state is not State.STOPPING)


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_a_line_that_passes_was_seen_to_be_able_since_its_last_upset(events: list[Event]) -> None:
    """Written over whole histories, from what happened and not from the states."""
    state = State.STARTING
    for event in events:
        state = next_state(state, event)
    if not may_pass(state):
        return
    assert Event.READY in events
    upsets = {
        Event.FAULT,
        Event.DISARM,
        Event.ARM,
        Event.CHANGE,
        Event.CHANGED,
        Event.CHANGE_FAILED,
    }
    effective = [
        event
        for before, event in _with_states(events)
        if event not in upsets or next_state(before, event) is not before
    ]
    last = max((i for i, event in enumerate(effective) if event in upsets), default=-1)
    assert set(effective[last + 1 :]) & (OBSERVED_ABLE | {Event.READY})
    assert Event.STOP not in events
    orders = [e for e in events[events.index(Event.READY) :] if e in {Event.ARM, Event.DISARM}]
    assert orders[-1:] != [Event.DISARM]


def _with_states(events: list[Event]) -> list[tuple[State, Event]]:
    state, out = State.STARTING, []
    for event in events:
        out.append((state, event))
        state = next_state(state, event)
    return out
