"""The PLC's function blocks against the simulator's state machines: same events, same gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plc_sides import MS, NUMBERS, PROGRAM, SOURCE, VERDICTS, Both

from metal_edge.demo.gate import Cause, GateRecord
from metal_edge.demo.line_stop import LineEvent, LineState, LineStop, StopSettings
from tools.st.evaluate import Program

sessions = st.sampled_from(["s1", "s2", "s3"])
EVENTS = st.one_of(
    st.tuples(
        st.just("trigger"),
        st.integers(0, 40),
        st.integers(0, 5),
        st.integers(0, 400),
        st.booleans(),
        st.sampled_from([None, 0, 1, 100]),
    ),
    st.tuples(
        st.just("decision"),
        st.tuples(st.integers(0, 40), st.integers(0, 5)),
        sessions,
        st.sampled_from(list(VERDICTS)),
        st.sampled_from(["plain"] * 8 + ["retained", "garbage", "schema", "above", "no score"]),
        st.sampled_from([0, 1, 10, 99, 100, 101, -1, None]),
    ),
    st.tuples(
        st.just("heartbeat"),
        sessions,
        st.sampled_from([1, 1, 1, 1, 2, 0, -1]),
        st.sampled_from([True] * 6 + [False]),
        st.sampled_from(["plain"] * 8 + ["retained", "garbage"]),
    ),
    st.tuples(
        st.just("state"),
        sessions,
        st.sampled_from(["online", "degraded", "offline", "cleared", "garbage"]),
    ),
    st.tuples(st.just("broker_lost")),
    st.tuples(st.just("line_stopped")),
    st.tuples(st.just("wait"), st.sampled_from([1, 10, 100, 300, 601])),
)


@settings(max_examples=60)
@given(st.lists(EVENTS, max_size=60))
def test_the_gate_block_does_what_the_simulator_does(events: list[tuple[Any, ...]]) -> None:
    both = Both(PROGRAM)
    for name, *arguments in events:
        getattr(both, name)(*arguments)
        both.agree()
    both.wait(1000)


def test_a_part_with_a_decision_of_its_own_is_released_and_only_that() -> None:
    """Random events seldom get this far: a good day, and each single thing that spoils it."""
    assert _day() == (True, 1)
    assert _day(session="s2")[0] is False
    assert _day(kind="retained")[0] is False
    assert _day(kind="above")[0] is False
    assert _day(verdict="unknown")[0] is False
    assert _day(travel=0)[0] is False
    assert _day(golden=True)[0] is False
    assert _day(silence=601)[0] is False
    assert _day(dwell=50, passing=60, age=10) == (True, 1)
    assert _day(dwell=50, passing=61, age=10) == (False, 16)
    assert _day(dwell=50, passing=60, age=61) == (False, 16)
    assert _day(dwell=50, passing=40, age=None) == (False, 16)


def _day(
    *,
    session: str = "s1",
    kind: str = "plain",
    verdict: str = "pass",
    travel: int = 100,
    golden: bool = False,
    silence: int = 0,
    dwell: int | None = None,
    passing: int = 0,
    age: int | None = 0,
) -> tuple[bool, int]:
    both = Both(PROGRAM)
    both.state("s1", "online")
    both.heartbeat("s1", 1, True, "plain")
    both.trigger(1, 1, max(travel, silence), golden, dwell)
    if passing:
        both.wait(passing)
    both.decision((1, 1), session, verdict, kind, age)
    both.wait(max(travel, silence) - passing)
    return both.block.values["Release"], both.block.values["Cause"]


def test_a_part_that_nobody_announced_is_rejected_and_a_full_table_says_so() -> None:
    block = PROGRAM.instance("FB_MetalEdgeGate")
    block(Event=4, NowMs=0, Readable=True, SessionId="s", Alive=True)
    block(Event=3, NowMs=0, SessionId="s", Seq=1, Healthy=True)
    assert block.values["Armed"]
    for number in range(33):
        block(Event=1, NowMs=0, TriggerId=f"t{number}", PartId=f"p{number}", GateMs=100)
        assert block.values["Refused"] == (number == 32)
        block(
            Event=2,
            TriggerId=f"t{number}",
            PartId=f"p{number}",
            Verdict=2,
            Numbers=True,
            Score=0.0,
            Threshold=1.0,
        )
    for number in range(33):
        block(Event=6, NowMs=100, TriggerId=f"t{number}")
        assert block.values["Release"] == (number < 32)
    assert block.values["Cause"] == 15


LINE_STATES = [LineState.RUNNING, LineState.STOPPED, LineState.CHECKING]
REASONS = {
    None: 0,
    LineEvent.LINK_DOWN_TOO_LONG: 1,
    LineEvent.TOO_MANY_REJECTS: 2,
    LineEvent.GOLDEN_WRONG: 3,
    LineEvent.LINK_LOST: 4,
}
LINE_EVENTS = st.one_of(
    st.tuples(st.just("link"), st.booleans(), sessions, st.booleans()),
    st.tuples(
        st.just("part"),
        st.sampled_from([Cause.PASS_VERDICT, Cause.REJECT_VERDICT, Cause.NO_DECISION]),
        st.booleans(),
    ),
    st.tuples(st.just("operator"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1, 400, 1000])),
)


@settings(max_examples=60)
@given(
    st.lists(LINE_EVENTS, max_size=60),
    st.sampled_from([None, 0, 1000]),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    st.booleans(),
)
def test_the_line_block_does_what_the_simulator_does(
    events: list[tuple[Any, ...]],
    after_ms: int | None,
    after_rejects: int | None,
    golden: bool,
    operator: bool,
) -> None:
    line = LineStop(
        StopSettings(
            None if after_ms is None else after_ms * MS,
            after_rejects,
            ("good", "bad") if golden else None,
            operator,
        )
    )
    block = PROGRAM.instance("FB_MetalEdgeLine")
    block(
        Event=1,
        NowMs=0,
        Cause=1,
        StopAfterMs=-1 if after_ms is None else after_ms,
        StopAfterRejects=after_rejects or 0,
        HasGoldenParts=golden,
        HasOperator=operator,
    )
    now = 0
    for name, *values in events:
        if name == "wait":
            now += values[0]
        elif name == "link":
            fault = Cause.NO_HEARTBEAT if values[0] else None
            line.on_link(fault, values[1], now * MS, belt_empty=values[2])
            code = NUMBERS[fault] if fault else 0
            block(Event=0, NowMs=now, Fault=code, SessionId=values[1], BeltEmpty=values[2])
        elif name == "part":
            line.on_record(GateRecord("p", "t", 0, 0, values[0], None, None, values[1]))
            block(Event=1, NowMs=now, Cause=NUMBERS[values[0]], Golden=values[1])
        else:
            fault = Cause.NO_HEARTBEAT if values[0] else None
            line.on_operator(fault)
            block(Event=2, NowMs=now, Fault=NUMBERS[fault] if fault else 0)
        assert LINE_STATES[block.values["State"]] is line.state
        assert block.values["Why"] == REASONS[line.why]


def test_the_echo_names_the_last_decision_of_the_session_that_was_heard() -> None:
    """The block and the simulator agree all the time; this is what they agree on."""
    both, named = Both(PROGRAM), []
    both.state("s1", "online")
    for session, kind in [("s1", "plain"), ("s2", "plain"), ("s1", "retained"), ("s1", "garbage")]:
        both.decision((1, 1), session, "pass", kind)
        both.heartbeat("s1", 1, True, "plain")
        assert both.echoed is not None
        named.append(both.echoed.decision_seq)
    both.state("s2", "online")
    both.heartbeat("s2", 1, True, "plain")
    assert both.echoed is not None
    assert (named, both.echoed.decision_seq) == ([1, 1, 1, 1], 0)


@pytest.mark.parametrize(
    ("broken", "instead"),
    [
        ("(Seq > LastSeq)", "TRUE"),
        ("(Score < Threshold)", "(Score <= Threshold)"),
        ("((NowMs - AgeMs) > Parts[i].LeavesMs)", "FALSE"),
    ],
)
def test_these_tests_see_a_broken_block(
    broken: str, instead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources with one line wrong, on the days above; parsing each takes seconds, so only three."""
    text = SOURCE.read_text(encoding="utf-8")
    assert broken in text
    wrong = tmp_path / "wrong.st"
    wrong.write_text(text.replace(broken, instead), encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", Program(wrong))
    with pytest.raises(AssertionError):
        test_a_part_with_a_decision_of_its_own_is_released_and_only_that()
        _replayed_heartbeat()
        _triggered_while_offline()


def _replayed_heartbeat() -> None:
    both = Both(PROGRAM)
    both.state("s1", "online")
    both.heartbeat("s1", 1, True, "plain")
    both.wait(500)
    both.heartbeat("s1", 0, True, "plain")
    both.wait(500)
    both.agree()


def _triggered_while_offline() -> None:
    both = Both(PROGRAM)
    both.trigger(1, 1, 100, False)
    both.state("s1", "online")
    both.heartbeat("s1", 1, True, "plain")
    both.decision((1, 1), "s1", "pass", "plain")
    both.wait(100)
