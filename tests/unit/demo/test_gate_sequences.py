"""No sequence of events lets a part through that does not deserve it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from support.gate_events import MS, SETTINGS, decision, heartbeat, raw, state

from metal_edge.demo.gate import RejectGate
from metal_edge.demo.gate_messages import MAX_PAYLOAD_BYTES

CORRUPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "reject": {"verdict": "reject"},
    "unknown": {"verdict": "unknown", "score": None, "threshold": None},
    "nan": {"score": math.nan},
    "above": {"score": 0.9},
    "schema": {"schema": 2},
    "foreign part": {"part_id": "P-elsewhere"},
    "foreign trigger": {"trigger_id": "T-elsewhere"},
    "foreign session": {"session_id": "S-foreign"},
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
TestAnySequence.settings = settings(max_examples=100, stateful_step_count=30)


@settings(max_examples=600)
@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_whatever_befalls_a_part_on_a_ready_line(events: list[tuple[str, Any]]) -> None:
    AnySequence().a_part_on_a_ready_line(events)
