"""The watchdog hears of a box only when every line in it lives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.notify import Manager

from metal_edge.daemon.keeper import BACK_OFF_LONGEST_S, back_off_s
from metal_edge.daemon.pulse import Pulse


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    receiver = Manager(str(tmp_path / "notify"))
    yield receiver
    receiver.close()


@pytest.fixture
def pulse(manager: Manager) -> Pulse:
    return Pulse(manager.notifier)


def test_one_silent_line_starves_the_watchdog(manager: Manager, pulse: Pulse) -> None:
    a, b = pulse.join("a"), pulse.join("b")
    for _ in range(5):
        a.watchdog()
    assert manager.heard() == []
    b.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    b.watchdog()
    b.watchdog()
    assert len(manager.heard()) == 1  # a has said nothing since
    a.watchdog()
    assert len(manager.heard()) == 2


def test_a_line_that_has_ended_is_not_waited_for(manager: Manager, pulse: Pulse) -> None:
    a, b = pulse.join("a"), pulse.join("b")
    a.watchdog()
    pulse.leave("b")
    a.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    del b


def test_the_status_names_every_line_that_is_not_alone(manager: Manager, pulse: Pulse) -> None:
    a = pulse.join("a")
    a.status("online")
    b = pulse.join("b")
    b.status("degraded: camera")
    b.status("degraded: camera")
    assert manager.heard() == ["STATUS=online", "STATUS=a: online; b: degraded: camera"]


@given(st.integers(min_value=1, max_value=10**9))
def test_the_back_off_grows_and_ends(failures: int) -> None:
    assert 0 < back_off_s(failures) <= back_off_s(failures + 1) <= BACK_OFF_LONGEST_S
