"""What the PLC's echo says of decisions: those that the broker refuses are noticed, no others."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.mqtt.echo import EchoWatch
from metal_edge.daemon.mqtt.payloads import HeartbeatPayload

S = 1_000_000_000
TIMEOUT = 2 * S


def echo(seq: int, **more: object) -> bytes:
    return json.dumps({"schema": 1, "session_id": "mine", "seq": seq, **more}).encode()


def decide(watch: EchoWatch, seq: int) -> None:
    watch.deciding(seq)
    watch.decided(seq)


def beat(watch: EchoWatch, seq: int, at_s: float, **said: object) -> None:
    """A heartbeat, answered at once."""
    watch.sent(seq, round(at_s * S))
    watch.heard(echo(seq, **said))


def denied(nothing: int | None = 0) -> EchoWatch:
    """A PLC that never heard a decision, at 4.1 s; 1 was sent at 1 s."""
    watch = EchoWatch("mine", 2)
    beat(watch, 1, 1, decision_seq=nothing)
    decide(watch, 1)
    for number, at_s in enumerate((1.1, 2, 3.1), start=2):
        assert not watch.unheard
        beat(watch, number, at_s, decision_seq=nothing)
    return watch


@pytest.mark.parametrize("nothing", [0, None])
def test_a_plc_that_never_heard_a_decision_says_so_from_the_first_echo_on(
    nothing: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    watch = denied(nothing)
    assert not watch.unheard, "it was sent 2 s ago, as far as heartbeats tell"
    for number in range(5, 8):
        beat(watch, number, number - 1.8, decision_seq=nothing)
        assert watch.unheard
    assert caplog.text.count("decisions 1 to 1 did not reach the PLC") == 1, "told once"
    watch.heard(echo(7, decision_seq=1))
    assert not watch.unheard
    watch.heard(echo(7, decision_seq=0))
    assert not watch.unheard, "a PLC that began anew has heard it all the same"


def test_a_plc_that_does_not_say_is_not_asked() -> None:
    """The heartbeat sent back, whose last_decision_seq is the daemon's own word, neither."""
    watch = EchoWatch("mine", 2)
    beat(watch, 1, 1)
    decide(watch, 1)
    for number in range(2, 9):
        beat(watch, number, number, last_decision_seq=1 - number % 2, healthy=True)
        assert not watch.unheard
    beat(watch, 9, 9, decision_seq=0)
    assert watch.unheard
    beat(watch, 10, 10, last_decision_seq=1)
    beat(watch, 11, 11, last_decision_seq=1, decision_seq=0)
    assert watch.unheard, "that is no proof that it was heard"
    assert "decision_seq" not in HeartbeatPayload.model_fields


@pytest.mark.parametrize(
    "said", [{"session_id": "other"}, {"seq": 99}, {"schema": 2}], ids=["session", "seq", "schema"]
)
def test_what_is_no_echo_of_ours_says_nothing_of_decisions(said: dict[str, object]) -> None:
    watch = denied()
    watch.sent(5, 4 * S)
    watch.heard(json.dumps({**json.loads(echo(5, decision_seq=1)), **said}).encode())
    watch.heard(echo(5, decision_seq=0))
    assert watch.unheard


def test_a_decision_may_be_heard_before_the_call_that_sent_it_returns() -> None:
    watch = EchoWatch("mine", 2)
    watch.deciding(1)
    beat(watch, 1, 1, decision_seq=1)
    assert watch.age_ms(S) == 0


def test_a_decision_that_was_not_sent_is_not_asked_for() -> None:
    watch = EchoWatch("mine", 2)
    beat(watch, 1, 1, decision_seq=0)
    watch.deciding(1)
    for number in range(2, 9):
        beat(watch, number, number, decision_seq=0)
    assert not watch.unheard


@pytest.mark.parametrize("before", [0, 1], ids=["there for the first time", "back"])
def test_decisions_that_were_sent_while_the_plc_was_away_are_not_asked_for(before: int) -> None:
    """In free run they go on without it. Later ones are."""
    watch = EchoWatch("mine", 2)
    for number in range(before):
        beat(watch, number + 1, 1, decision_seq=0)
    decide(watch, 1)
    for number in range(2, 9):
        watch.sent(number, number * S)
    for number in range(9, 12):
        beat(watch, number, number, decision_seq=0)
        assert not watch.unheard
    decide(watch, 2)
    for number in range(12, 16):
        beat(watch, number, number, decision_seq=0)
    assert watch.unheard


def test_what_the_old_connection_took_with_it_is_not_asked_for() -> None:
    watch = denied()
    beat(watch, 5, 3.2, decision_seq=0)
    assert watch.unheard
    watch.connected()
    for number in range(6, 9):
        beat(watch, number, number - 2.7, decision_seq=0)
        assert not watch.unheard
    decide(watch, 2)
    for number in range(9, 13):
        beat(watch, number, number - 2.7, decision_seq=0)
    assert watch.unheard


class Line:
    """Daemon and PLC with a network between them that takes its time; all times in ns.

    Events come in the order of their times; what comes at the same time, as it was planned.
    """

    def __init__(self) -> None:
        self.watch = EchoWatch("mine", TIMEOUT / S)
        self.now = 0
        self.alarms: list[int] = []
        self.heard = self.beats = self.decisions = 0
        self._plan: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, time_ns: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._plan, (time_ns, next(self._order), what))

    def run(self) -> None:
        while self._plan:
            self.now, _, what = heapq.heappop(self._plan)
            what()
            if self.watch.unheard:
                self.alarms.append(self.now)

    def decision(self, delay: int | None) -> None:
        """Heard after `delay`, or denied."""
        self.decisions += 1
        seq = self.decisions
        self.watch.deciding(seq)
        if delay is not None:
            self.at(self.now + delay, lambda: self._hear(seq))
        self.watch.decided(seq)

    def _hear(self, seq: int) -> None:
        self.heard = max(self.heard, seq)

    def beat(self, there: int, back: int) -> None:
        self.beats += 1
        seq = self.beats
        self.watch.sent(seq, self.now)
        self.at(self.now + there, lambda: self._answer(seq, back))

    def _answer(self, seq: int, back: int) -> None:
        payload = echo(seq, decision_seq=self.heard)
        self.at(self.now + back, lambda: self.watch.heard(payload))


DELAYS = st.one_of(st.just(0), st.just(TIMEOUT), st.integers(0, TIMEOUT))
STEPS = st.one_of(
    st.tuples(st.just("decision"), DELAYS, st.just(0)),
    st.tuples(st.just("beat"), st.integers(0, 3 * S), st.integers(0, 3 * S)),
)


@given(st.lists(st.tuples(st.integers(0, S), STEPS), max_size=60))
def test_no_alarm_while_each_decision_is_heard_within_the_timeout(
    steps: list[tuple[int, tuple[str, int, int]]],
) -> None:
    """Whatever overtakes whatever, and however long the echoes are under way."""
    line, at = Line(), 0
    for passed, (what, first, second) in steps:
        at += passed
        if what == "decision":
            line.at(at, lambda delay=first: line.decision(delay))  # type: ignore[misc]
        else:
            line.at(at, lambda a=first, b=second: line.beat(a, b))  # type: ignore[misc]
    line.run()
    assert line.alarms == []


@given(
    before=st.lists(st.integers(0, 5 * S), max_size=5),
    denied_ns=st.integers(6 * S, 8 * S),
    period=st.integers(S // 10, TIMEOUT),
    there=st.integers(0, S // 2),
    back=st.integers(0, S // 2),
)
def test_denied_decisions_are_told_within_the_timeout_two_heartbeats_and_an_echo(
    before: list[int], denied_ns: int, period: int, there: int, back: int
) -> None:
    """Be it the first decision or a later one; and it is over when one is heard again. Heartbeats
    come once in the timeout at least: where they do not, the echo is missed for itself."""
    line = Line()
    allowed_ns = denied_ns + TIMEOUT + 2 * period + there + back
    end = allowed_ns + 2 * period + there + back
    for at in sorted(before):
        line.at(at, lambda: line.decision(0))
    line.at(denied_ns, lambda: line.decision(None))
    for at in range(0, end, period):
        line.at(at, lambda: line.beat(there, back))
    line.at(allowed_ns + 1, lambda: line.decision(0))
    line.run()
    assert line.alarms, "told"
    assert denied_ns + TIMEOUT < line.alarms[0] <= allowed_ns
    assert not line.watch.unheard, "over"


@given(st.integers(1, 5))
def test_memory_is_bounded_by_the_heartbeats_of_one_timeout(rate: int) -> None:
    watch = EchoWatch("mine", 2)
    for number in range(1, 200):
        for more in range(rate):
            decide(watch, number * rate + more)
        watch.sent(number, number * S // 10)
    held = [value for value in vars(watch).values() if hasattr(value, "__len__")]
    assert max(len(value) for value in held) <= 21
