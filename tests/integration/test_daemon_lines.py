"""Several lines in one process: a real daemon, and what one line's faults do to the other."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.broker import Broker, Listener, wait_until
from support.daemon_process import Daemon, write_settings


def station(name: str) -> str:
    return f"metal/v1/enterprise/site/area/line/{name}"


class Box:
    """Starts one daemon for lines `a` and `b`; keyword arguments change the settings of `b`."""

    def __init__(self, folder: Path, broker: Broker, stack: ExitStack) -> None:
        self._folder = folder
        self._broker = broker
        self._stack = stack

    def settings(self, name: str, **sections: Any) -> Path:
        sections = {"station": {"station": name}, **sections}
        return write_settings(self._folder / f"{name}.toml", self._broker, **sections)

    def start(self, **changes: Any) -> Daemon:
        a, b = self.settings("a"), self.settings("b", **changes)
        return self._stack.enter_context(Daemon(a, also=[b]))


@pytest.fixture
def box(line: Path, broker: Broker) -> Iterator[Box]:
    with ExitStack() as stack:
        yield Box(line, broker, stack)


def states(listener: Listener, name: str) -> list[str]:
    return [h.data["status"] for h in listener.all("state") if h.topic == f"{station(name)}/state"]


def online(listener: Listener, *names: str, timeout_s: float = 20) -> None:
    for name in names:
        wait_until(lambda name=name: "online" in states(listener, name), f"line {name}", timeout_s)


def test_two_lines_decide_in_one_process(box: Box, listener: Listener) -> None:
    daemon = box.start()
    online(listener, "a", "b")
    for number in range(5):
        listener.trigger(station("a"), f"a{number}", "good")
        listener.trigger(station("b"), f"b{number}", "bad")
    for number in range(5):
        assert listener.verdict(f"a{number}")["verdict"] == "pass"
        assert listener.verdict(f"b{number}")["verdict"] == "reject"
    sessions = {heard.data["session_id"] for heard in listener.all("decision")}
    assert len(sessions) == 2
    assert daemon.stop() == 0
    assert (states(listener, "a")[-1], states(listener, "b")[-1]) == ("offline", "offline")


def test_a_line_without_its_camera_does_not_stop_the_other_and_comes_later(
    box: Box, listener: Listener, line: Path
) -> None:
    daemon = box.start(camera={"uri": "later"})
    online(listener, "a")
    wait_until(lambda: "line b is offline" in daemon.log, "the reason")
    listener.trigger(station("a"), "t1", "good")
    assert listener.verdict("t1")["verdict"] == "pass"
    said = listener.wait("state", lambda heard: heard.topic == f"{station('b')}/state")
    assert (said.data["status"], said.retain) == ("offline", False)
    assert said.data["problems"] == ["failed while opening camera cam0"]
    (line / "images").rename(line / "moved")
    (line / "moved").rename(line / "later")
    online(listener, "b")
    listener.trigger(station("b"), "t2", "bad")
    assert listener.verdict("t2")["verdict"] == "reject"


def test_a_broken_bundle_is_one_line_s_trouble(box: Box, listener: Listener, line: Path) -> None:
    daemon = box.start(bundle="nowhere")
    online(listener, "a")
    wait_until(lambda: "line b is offline" in daemon.log, "the reason")
    listener.trigger(station("a"), "t1", "good")
    assert listener.verdict("t1")["verdict"] == "pass"
    assert daemon.stop() == 0


def test_sighup_reaches_every_line(box: Box, listener: Listener) -> None:
    daemon = box.start()
    online(listener, "a", "b")
    for name in ("a", "b"):
        box.settings(name, decision={"deadline_ms": 1234})
    daemon.process.send_signal(signal.SIGHUP)
    for name in ("a", "b"):
        topic = f"{station(name)}/config"
        listener.wait(
            "config",
            lambda h, topic=topic: h.topic == topic and h.data["decision"]["deadline_ms"] == 1234,
        )


def test_one_station_cannot_be_two_lines(box: Box) -> None:
    daemon = box.start(station={"station": "a"})
    assert daemon.exit_code() == 78
    assert "are the same station" in daemon.log


def test_a_line_stays_on_its_cpus(box: Box, listener: Listener) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one CPU: every thread is on it anyway")
    daemon = box.start(runtime={"cpus": [allowed[-1]]})
    online(listener, "a", "b")
    tasks = Path(f"/proc/{daemon.process.pid}/task")
    found = [os.sched_getaffinity(int(task.name)) for task in tasks.iterdir()]
    # Line b's own thread, its camera's and its broker's; the others may go anywhere.
    assert len([cpus for cpus in found if cpus == {allowed[-1]}]) >= 3
    assert set(allowed) in found


def test_a_cpu_that_is_not_there_is_a_mistake_in_the_settings(box: Box, listener: Listener) -> None:
    daemon = box.start(runtime={"cpus": [1000]})
    online(listener, "a")
    wait_until(lambda: "runtime.cpus [1000] cannot be used" in daemon.log, "the mistake")


def realtime(daemon: Daemon) -> list[int]:
    """Priorities of its threads under SCHED_FIFO."""
    tasks = [int(task.name) for task in Path(f"/proc/{daemon.process.pid}/task").iterdir()]
    fifo = [t for t in tasks if os.sched_getscheduler(t) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO]
    return [os.sched_getparam(task).sched_priority for task in fifo]


def test_who_decides_has_the_priority_and_nobody_else(box: Box, listener: Listener) -> None:
    """In free run two threads do: the one that decides, and the one in which its model infers."""
    if subprocess.run(["chrt", "-f", "10", "true"], check=False, capture_output=True).returncode:
        pytest.skip("nobody may use SCHED_FIFO here")
    free = {"mode": "latest", "loop": True, "fps": 10}
    daemon = box.start(runtime={"realtime_priority": 10}, camera=free)
    online(listener, "a", "b")
    listener.wait("decision", lambda h: h.topic.startswith(station("b")))
    wait_until(lambda: realtime(daemon) == [10, 10], "two threads of line b")
    listener.trigger(station("a"), "t1", "good")
    assert listener.verdict("t1")["verdict"] == "pass"
    assert realtime(daemon) == [10, 10]
    assert daemon.stop() == 0
