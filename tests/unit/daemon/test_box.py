"""Keepers and their box around lines that fail, hang and end: threads are real, lines are not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.broker import wait_until
from support.notify import Manager

from metal_edge.daemon import box as box_module
from metal_edge.daemon import keeper as keeper_module
from metal_edge.daemon.arming import Tools
from metal_edge.daemon.box import Box, ReloadFlag
from metal_edge.daemon.clock import Clock, SystemClock
from metal_edge.daemon.line.line import StopFlag
from metal_edge.errors import ExitCode, UnavailableError
from metal_edge.runtime.shared import Engines
from metal_edge.settings import CameraSettings, LineSettings

Run = Callable[[Tools], None]


class Bench:
    """A box whose lines do what the test says when they run."""

    def __init__(self, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stop = StopFlag()
        self.before_run: Run = lambda tools: None  # what takes time while arming
        self.at_the_end: Callable[[], object] = lambda: None  # what takes time while closing
        self.announced: list[str] = []
        self.ended: ExitCode | None = None
        self.error: BaseException | None = None
        self.manager = manager
        self._runs: dict[str, Run] = {}
        monkeypatch.setattr(keeper_module, "arm", self._arm)
        monkeypatch.setattr(keeper_module, "announce_absence", self._announce)
        monkeypatch.setattr(keeper_module, "BACK_OFF_FIRST_S", 0.01)
        self._thread = threading.Thread(target=self._live, daemon=True)

    def start(self, patient: bool = True, **runs: Run) -> None:
        self._runs = runs
        self._patient = patient
        self._thread.start()

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _live(self) -> None:
        notifier = self.manager.notifier
        tools = Tools(SystemClock(), self.stop, Engines(), notifier, lambda what: None)
        lines = {
            name: lambda name=name: LineSettings(
                bundle=Path(name), camera=CameraSettings(kind="folder")
            )
            for name in self._runs
        }
        try:
            self.ended = Box(lines, tools, notifier, ReloadFlag(), patient=self._patient).run()
        except UnavailableError as error:
            self.error = error

    def _announce(self, settings: LineSettings, problem: str, clock: Clock) -> None:
        self.announced.append(f"{settings.bundle.name}: {problem}")

    def _close(self) -> None:
        self.at_the_end()

    def _arm(self, settings: LineSettings, tools: Tools, cleanup: ExitStack) -> Any:
        self.before_run(tools)
        cleanup.callback(self._close)
        name = settings.bundle.name
        identity = SimpleNamespace(model_id="m", topic_root=name)
        serving = SimpleNamespace(identity=identity)
        run = self._runs[name]
        line = SimpleNamespace(serving=serving, run=lambda: run(tools))
        return SimpleNamespace(line=line, changeover=None)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    manager = Manager(str(tmp_path / "notify"))
    bench = Bench(manager, monkeypatch)
    yield bench
    bench.stop.request()
    bench.join()
    manager.close()


def lives(tools: Tools) -> None:
    """A good line: signs until it is told to stop."""
    while not tools.stop.requested():
        tools.notifier.watchdog()
        threading.Event().wait(0.002)


def test_an_exception_in_one_loop_leaves_the_other_alone(bench: Bench) -> None:
    tries: list[str] = []

    def breaks(tools: Tools) -> None:
        tries.append("again")
        if len(tries) < 4:
            raise ZeroDivisionError
        lives(tools)

    starts: list[str] = []

    def lives_once(tools: Tools) -> None:
        starts.append("once")
        lives(tools)

    bench.start(bad=breaks, good=lives_once)
    wait_until(lambda: len(tries) == 4, "the line to be tried until it lives")
    wait_until(lambda: bench.manager.heard().count("WATCHDOG=1") > 3, "signs of life")
    assert starts == ["once"]
    bench.stop.request()
    bench.join()
    assert bench.ended is ExitCode.OK


def test_one_line_that_hangs_starves_the_watchdog(bench: Bench) -> None:
    hangs = threading.Event()
    signs: list[str] = []

    def hang(tools: Tools) -> None:
        tools.notifier.watchdog()
        hangs.wait(20)

    def counts(tools: Tools) -> None:
        while not hangs.wait(0.002):
            signs.append("alive")
            tools.notifier.watchdog()

    bench.start(hangs=hang, good=counts)
    wait_until(lambda: "READY=1" in bench.manager.heard(), "both lines to run")
    wait_until(lambda: len(signs) > 100, "the other line to go on")
    assert bench.manager.heard().count("WATCHDOG=1") <= 1
    hangs.set()


def test_an_impatient_line_takes_its_error_to_the_box(bench: Bench) -> None:
    def gone(tools: Tools) -> None:
        raise UnavailableError("no camera", "plug it in")

    bench.start(patient=False, only=gone)
    bench.join()
    assert str(bench.error) == "no camera: plug it in"


def test_an_impatient_line_that_fails_is_never_ready(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager must not hear READY of a service that is about to exit with an error."""

    class News(threading.Event):
        """Whoever brings some gives the box the time to look around."""

        def set(self) -> None:
            super().set()
            threading.Event().wait(0.05)

    def gone(tools: Tools) -> None:
        raise UnavailableError("no camera", "plug it in")

    monkeypatch.setattr(bench, "before_run", gone)
    monkeypatch.setattr(box_module, "threading", SimpleNamespace(Event=News))
    bench.start(patient=False, only=lives)
    bench.join()
    assert str(bench.error) == "no camera: plug it in"
    assert "READY=1" not in bench.manager.heard()


def test_the_box_ends_when_all_lines_have_come_to_their_end(bench: Bench) -> None:
    bench.start(a=lambda tools: None, b=lambda tools: None)
    bench.join()
    assert bench.ended is ExitCode.OK


def test_ready_is_said_once_every_line_was_tried(bench: Bench) -> None:
    def gone(tools: Tools) -> None:
        raise UnavailableError("no camera", "plug it in")

    bench.start(a=gone, b=lives)
    wait_until(lambda: "READY=1" in bench.manager.heard(), "READY")
    text = next(row for row in bench.manager.heard() if row.startswith("STATUS=a: offline"))
    assert "no camera" in text


@pytest.mark.parametrize(("doing", "asks"), [("loading recipe default", True), ("opening", False)])
def test_more_time_is_asked_for_while_an_engine_is_loaded(
    bench: Bench, doing: str, asks: bool
) -> None:
    """A camera that does not open must run into the unit's limit instead."""
    go_on = threading.Event()

    def slow(tools: Tools) -> None:
        tools.phase(doing)
        assert go_on.wait(10)

    bench.before_run = slow
    bench.start(only=lives)
    wait_until(lambda: f"STATUS={doing}" in bench.manager.heard(), "the phase")
    if asks:
        wait_until(
            lambda: bench.manager.heard()[-1].startswith("EXTEND_TIMEOUT_USEC="), "more time"
        )
    assert "READY=1" not in bench.manager.heard()
    go_on.set()
    wait_until(lambda: "READY=1" in bench.manager.heard(), "READY")
    asked = [row for row in bench.manager.heard() if row.startswith("EXTEND_TIMEOUT_USEC=")]
    assert bool(asked) is asks


def test_a_stop_does_not_wait_for_an_engine_to_be_built(bench: Bench) -> None:
    go_on = threading.Event()

    def builds(tools: Tools) -> None:
        tools.phase("loading recipe default")
        assert go_on.wait(30)

    bench.before_run = builds
    bench.start(only=lives)
    wait_until(lambda: "STATUS=loading recipe default" in bench.manager.heard(), "the phase")
    bench.stop.request()
    bench.join()
    assert bench.ended is ExitCode.OK
    assert "READY=1" not in bench.manager.heard()
    go_on.set()


def test_the_broker_hears_once_why_a_line_is_not_there(bench: Bench) -> None:
    tries: list[str] = []

    def gone(tools: Tools) -> None:
        tools.phase("opening camera cam0")
        tries.append("again")
        if len(tries) < 4:
            raise UnavailableError("rtsp://user:secret@camera", "plug it in")

    bench.before_run = gone
    bench.start(only=lives)
    wait_until(lambda: "READY=1" in bench.manager.heard() and len(tries) == 4, "the line")
    assert bench.announced == ["only: failed while opening camera cam0"]


def test_a_camera_that_does_not_close_holds_up_its_own_line_only(bench: Bench) -> None:
    closes, closing = threading.Event(), threading.Event()

    def close() -> None:
        closing.set()
        closes.wait(10)

    def breaks(tools: Tools) -> None:
        bench.at_the_end = close
        raise ZeroDivisionError

    bench.start(bad=breaks, good=lives)
    wait_until(closing.is_set, "the broken line to close")
    before = bench.manager.heard().count("WATCHDOG=1")
    wait_until(lambda: bench.manager.heard().count("WATCHDOG=1") > before + 2, "signs of life")
    closes.set()
