"""Each row of docs/fail-safe.md's state tables, tried on the simulator and on the PLC's blocks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.plc_sides import MS, NUMBERS, PROGRAM, Both

from metal_edge.demo.gate import Cause, GateRecord
from metal_edge.demo.line_stop import TRANSITIONS, LineEvent, LineState, LineStop, StopSettings

ROOT = Path(__file__).parents[3]
REARM = 3
Do = Callable[[Both], None]


def section(title: str) -> str:
    """From its heading to the next one."""
    text = (ROOT / "docs" / "fail-safe.md").read_text(encoding="utf-8")
    return text.split(f"## {title}")[1].split("\n## ")[0]


def link_table() -> dict[tuple[str, str], tuple[str, str]]:
    """State and event -> next and parts under way, in the page's words."""
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", section("The link"), re.MULTILINE
    )
    return {(state, event): (after, parts) for state, event, after, parts in rows[1:]}


# --- the link ---


def beat(both: Both, session: str = "s1", healthy: bool = True) -> None:
    both.heartbeat(session, 1, healthy, "plain")


def waiting(both: Both) -> None:
    """s1 replaced s0 and owes its first heartbeat."""
    both.state("s0", "online")
    both.state("s1", "online")


def armed(both: Both) -> None:
    waiting(both)
    beat(both)


def tripped(both: Both) -> None:
    """With all but one of the heartbeats that it needs."""
    armed(both)
    beat(both, healthy=False)
    for _ in range(REARM - 1):
        beat(both)


def offline(both: Both) -> None:
    armed(both)
    both.state("s1", "offline")


STATES: dict[str, tuple[Do, ...]] = {
    "any": (waiting, armed, tripped, offline),
    "waiting or tripped": (waiting, tripped),
    "tripped": (tripped,),
    "armed": (armed,),
}
EVENTS: dict[str, tuple[Do, ...]] = {
    "`state` alive with a session not seen before": (
        lambda both: both.state("s9", "online"),
        lambda both: both.state("s9", "degraded"),
    ),
    "valid, healthy heartbeat; as many in a row as needed": (beat,),
    "valid, healthy heartbeat": (beat,),
    "silence of three periods": (lambda both: both.wait(601),),
    "silence of three periods between two of them": (lambda both: both.wait(601),),
    "`healthy` not true": (lambda both: beat(both, healthy=False),),
    "`state` offline, empty or unreadable": (
        lambda both: both.state("s1", "offline"),
        lambda both: both.state("s1", "cleared"),
        lambda both: both.state("s1", "garbage"),
    ),
    "connection to the broker lost": (lambda both: both.broker_lost(),),
    "`state` or heartbeat of a session that was replaced": (
        lambda both: both.state("s0", "online"),
        lambda both: both.state("s0", "offline"),
        lambda both: beat(both, "s0", healthy=False),
    ),
    "`state` offline of another session": (lambda both: both.state("s7", "offline"),),
}


def is_armed(both: Both) -> bool:
    both.agree()
    return bool(both.block.values["Armed"])


def needs(count: int, session: str = "s1") -> Do:
    """So many heartbeats in a row arm the link, and one less does not."""

    def check(both: Both) -> None:
        for _ in range(count):
            assert not is_armed(both)
            beat(both, session)
        assert is_armed(both)

    return check


def stays_offline(both: Both) -> None:
    for _ in range(REARM + 1):
        beat(both)
        assert not is_armed(both)


def back_online(both: Both) -> None:
    stays_offline(both)
    both.state("s1", "online")
    needs(REARM)(both)


def replaced(both: Both) -> None:
    stays_offline(both)
    both.state("s9", "online")
    needs(1, "s9")(both)


def stays_armed(both: Both) -> None:
    assert is_armed(both)


NEXT: dict[str, tuple[Do, ...]] = {
    "waiting: 1 heartbeat arms": (needs(1, "s9"),),
    "armed": (stays_armed,),
    "tripped: the count begins again": (needs(REARM),),
    "tripped: 3 heartbeats in a row re-arm": (needs(REARM),),
    "tripped": (needs(REARM),),
    "offline": (back_online, replaced),
    "offline: needs `state` alive, then 3 heartbeats (1 if the session is new)": (
        back_online,
        replaced,
    ),
}


def nothing_changed(state: Do) -> tuple[Do, ...]:
    """What the state was like before."""
    return {
        waiting: (needs(1),),
        armed: (stays_armed,),
        tripped: (needs(1),),
        offline: (back_online, replaced),
    }[state]


def release_of_a_good_part(both: Both, meanwhile: Do) -> bool:
    """One that passed the photo-eye and got its `pass` before; the link lives until the gate."""
    both.trigger(1, 1, 1500, golden=False)
    both.decision((1, 1), "s1", "pass", "plain")
    before = both.passed
    meanwhile(both)
    while both.open_parts("t1"):
        beat(both, str(both.gate.session_id))
        both.wait(200)
    return both.passed > before


@pytest.mark.parametrize(("state", "event"), link_table())
def test_the_link_does_what_its_row_says(state: str, event: str) -> None:
    after, parts = link_table()[state, event]
    for begin in STATES[state]:
        for happens in EVENTS[event]:
            checks = nothing_changed(begin) if after.startswith("no change") else NEXT[after]
            for check in checks:
                both = Both()
                begin(both)
                happens(both)
                check(both)
            both = Both()
            begin(both)
            released = release_of_a_good_part(both, happens)
            assert released is (parts == "-" and begin is armed), (begin, happens)


def test_the_table_of_the_link_is_there() -> None:
    """Or nothing above would be tried."""
    assert len(link_table()) >= 10


# --- the line ---


class Line:
    """Latch and block, told the same."""

    def __init__(self) -> None:
        self.latch = LineStop(StopSettings(1000 * MS, 3, ("good", "bad"), operator=True))
        self.block = PROGRAM.instance("FB_MetalEdgeLine")
        self.now = 0

    def call(self, event: int, **inputs: object) -> None:
        given = {"StopAfterMs": 1000, "StopAfterRejects": 3, "HasGoldenParts": True}
        self.block(Event=event, NowMs=self.now, **given, **inputs)

    def link(self, session: str, fault: Cause | None = None) -> None:
        self.latch.on_link(fault, session, self.now * MS, belt_empty=True)
        self.call(0, Fault=NUMBERS[fault] if fault else 0, SessionId=session, BeltEmpty=True)

    def parts(self, *causes: Cause, golden: bool = False) -> None:
        for cause in causes:
            self.latch.on_record(GateRecord("p", "t", 0, 0, cause, None, None, golden))
            self.call(1, Cause=NUMBERS[cause], Golden=golden)

    def operator(self) -> None:
        self.latch.on_operator(None)
        self.call(2, Fault=0)

    def down_for(self, ms: int) -> None:
        self.link("s1", Cause.NO_HEARTBEAT)
        self.now += ms
        self.link("s1", Cause.NO_HEARTBEAT)

    def bring_to(self, state: LineState) -> None:
        self.link("s1")
        if state is not LineState.RUNNING:
            self.down_for(1000)
        if state is LineState.CHECKING:
            self.link("s2")

    def happen(self, event: LineEvent) -> None:
        match event:
            case LineEvent.LINK_DOWN_TOO_LONG:
                self.down_for(1000)
            case LineEvent.LINK_LOST:
                self.link("s2", Cause.BROKER_LOST)
            case LineEvent.TOO_MANY_REJECTS:
                self.parts(*[Cause.NO_DECISION] * 3)
            case LineEvent.NEW_SESSION_ARMED:
                self.link("s3")
            case LineEvent.GOLDEN_RIGHT:
                self.parts(Cause.PASS_VERDICT, Cause.REJECT_VERDICT, golden=True)
            case LineEvent.GOLDEN_WRONG:
                self.parts(Cause.PASS_VERDICT, Cause.PASS_VERDICT, golden=True)
            case LineEvent.OPERATOR:
                self.operator()


@pytest.mark.parametrize("state", LineState)
@pytest.mark.parametrize("event", LineEvent)
def test_the_line_does_what_its_row_says(state: LineState, event: LineEvent) -> None:
    """TRANSITIONS is the page's table: tests/unit/demo/test_line_stop.py compares them."""
    line = Line()
    line.bring_to(state)
    assert line.latch.state is state
    line.happen(event)
    after = TRANSITIONS.get((state, event), state)
    if (state, event) == (LineState.CHECKING, LineEvent.LINK_DOWN_TOO_LONG):
        after = LineState.STOPPED  # it was lost before it was down for long
    assert line.latch.state is after
    numbers = {LineState.RUNNING: 0, LineState.STOPPED: 1, LineState.CHECKING: 2}
    assert line.block.values["State"] == numbers[after]


def test_the_listed_causes_are_the_simulators() -> None:
    """A PLC shows numbers; NUMBERS is what the block was held against."""
    page = (ROOT / "plc" / "README.md").read_text(encoding="utf-8")
    table = page.split("`Cause`, and `Fault`")[1].split("`Why`")[0]
    rows = re.findall(r"^\| (\d+) \| (.+?) \|$", table, re.MULTILINE)
    listed = {name: int(number) for number, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed == {cause.value: number for cause, number in NUMBERS.items()}
