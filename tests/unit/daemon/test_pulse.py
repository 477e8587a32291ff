"""The watchdog hears of a box only when every line in it lives."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.keeper import BACK_OFF_LONGEST_S, back_off_s
from metal_edge.daemon.pulse import Pulse
from metal_edge.daemon.sdnotify import Notifier


class Manager:
    """The service manager's end of a real notification socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"}
        self.pulse = Pulse(Notifier(environment))

    def heard(self) -> list[str]:
        rows: list[str] = []
        while True:
            try:
                rows.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return rows

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    receiver = Manager(tmp_path / "notify")
    yield receiver
    receiver.close()


def test_one_silent_line_starves_the_watchdog(manager: Manager) -> None:
    a, b = manager.pulse.join("a"), manager.pulse.join("b")
    for _ in range(5):
        a.watchdog()
    assert manager.heard() == []
    b.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    b.watchdog()
    b.watchdog()
    assert manager.heard() == []  # a has said nothing since
    a.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]


def test_a_line_that_has_ended_is_not_waited_for(manager: Manager) -> None:
    a, b = manager.pulse.join("a"), manager.pulse.join("b")
    a.watchdog()
    manager.pulse.leave("b")
    a.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]
    del b


def test_the_status_names_every_line_that_is_not_alone(manager: Manager) -> None:
    a = manager.pulse.join("a")
    a.status("online")
    b = manager.pulse.join("b")
    b.status("degraded: camera")
    b.status("degraded: camera")
    assert manager.heard() == ["STATUS=online", "STATUS=a: online; b: degraded: camera"]


@given(st.integers(min_value=1, max_value=10**9))
def test_the_back_off_grows_and_ends(failures: int) -> None:
    assert 0 < back_off_s(failures) <= back_off_s(failures + 1) <= BACK_OFF_LONGEST_S
