"""The PLC's echo of the heartbeat: fresh, ours, or it proves nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.mqtt.echo import MAX_ECHO, EchoWatch

S = 1_000_000_000


def echo(seq: object, session: str = "mine", **more: object) -> bytes:
    return json.dumps({"schema": 1, "session_id": session, "seq": seq, **more}).encode()


def test_nobody_is_silent_before_the_first_heartbeat_had_its_time() -> None:
    watch = EchoWatch("mine", 2)
    assert not watch.silent(10**15)
    watch.sent(1, 100 * S)
    assert not watch.silent(102 * S)
    assert watch.silent(102 * S + 1)
    assert watch.age_ms(102 * S) is None


def test_an_echo_is_as_old_as_the_heartbeat_it_answers() -> None:
    watch = EchoWatch("mine", 2)
    for number in range(1, 4):
        watch.sent(number, number * S)
    watch.heard(echo(2))
    assert watch.age_ms(3 * S) == 1000
    watch.heard(echo(3))
    watch.heard(echo(2))
    assert watch.age_ms(3 * S) == 0
    assert (watch.silent(5 * S), watch.silent(5 * S + 1)) == (False, True)


@pytest.mark.parametrize(
    "payload",
    [
        echo(2),
        echo(0),
        echo(1, session="other"),
        echo("1"),
        echo(True),
        echo(1.0),
        b'{"session_id": "mine", "seq": 1}',
        b'{"schema": 2, "session_id": "mine", "seq": 1}',
        b"[" * MAX_ECHO,
        echo(1, padding="x" * MAX_ECHO),
        b"\xff",
        b"",
        echo(1, decision_seq=3),
        echo(1, decision_seq=10**400),
        echo(1, decision_seq=-1),
        echo(1, decision_seq=1.0),
        echo(1, decision_seq=True),
        echo(1, decision_seq="1"),
        echo(1, session="other", decision_seq=2),
    ],
)
def test_what_is_no_echo_of_ours_proves_nothing(
    payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    watch = EchoWatch("mine", 2)
    watch.deciding(2)
    watch.decided(2)
    watch.sent(1, S)
    watch.heard(payload)
    watch.heard(payload)
    assert watch.age_ms(S) is None
    assert watch.silent(3 * S + 1)
    assert caplog.text.count("echo ignored") == 1, "a warning per echo would fill the journal"


def test_the_whole_heartbeat_sent_back_is_an_echo() -> None:
    watch = EchoWatch("mine", 2)
    watch.sent(1, S)
    watch.heard(echo(1, healthy=True, problems=[]))
    assert watch.age_ms(S) == 0


def test_a_heartbeat_echoed_again_much_later_is_no_sign_of_life(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = EchoWatch("mine", 2)
    watch.sent(1, S)
    for number in range(2, 10):
        watch.sent(number, number * S)
        watch.heard(echo(1))
    assert watch.silent(9 * S)
    assert "no heartbeat of late" in caplog.text, "old numbers pile up in memory"


def test_a_new_connection_gives_the_plc_its_time_again() -> None:
    watch = EchoWatch("mine", 2)
    watch.sent(1, S)
    watch.connected()
    watch.heard(echo(1))
    assert watch.age_ms(S) is None
    assert not watch.silent(60 * S)
    watch.sent(2, 60 * S)
    assert watch.silent(62 * S + 1)


@given(
    st.lists(st.tuples(st.sampled_from(["beat", "echo", "old"]), st.integers(0, S)), max_size=60)
)
def test_silent_is_exactly_no_young_heartbeat_echoed(steps: list[tuple[str, int]]) -> None:
    watch, now, seq = EchoWatch("mine", 2), 0, 0
    sent: dict[int, int] = {}
    echoed: list[int] = []
    for what, passed in steps:
        now += passed
        if what == "beat":
            seq += 1
            sent[seq] = now
            watch.sent(seq, now)
        elif sent:
            number = seq if what == "echo" else 1
            watch.heard(echo(number))
            if sent[seq] - sent[number] <= 2 * S:
                echoed.append(sent[number])
        last = max(echoed) if echoed else min(sent.values(), default=now)
        assert watch.silent(now) == (now - last > 2 * S)
