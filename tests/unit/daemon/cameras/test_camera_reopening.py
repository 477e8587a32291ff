"""Silence, failing, hanging, reopening: real threads around sources that do as they are told."""

from __future__ import annotations

import threading
import time

import pytest
from support.broker import wait_until
from support.told_camera import HARDWARE, MakeTold, Step, Told, ToldCamera, grabbed

from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EndOfStreamError,
    TornFrameError,
)
from metal_edge.daemon.cameras import reader as camera_reader
from metal_edge.daemon.cameras.stream import MOST_LEFT_BEHIND, StreamCamera


def test_silence_is_a_failure_only_of_a_camera_that_never_is(told: MakeTold) -> None:
    chatty = told([1], never_silent=True)
    quiet = told([1], **HARDWARE)
    wait_until(lambda: len(chatty.tries) >= 3, "reopening")
    assert len(quiet.tries) == 1


def test_the_error_behind_the_silence_is_named(told: MakeTold) -> None:
    camera = told([CameraError("the cable is out", "push it in")], CameraError("still out"))
    wait_until(lambda: len(camera.tries) > 1, "a second try")
    with pytest.raises(CameraTimeoutError, match=r"no frame in time \(still out\)"):
        camera.grab(0.01)


def test_tries_slow_down_with_jitter_and_never_stop() -> None:
    class Dice:
        """Shows what it was asked for."""

        def __init__(self) -> None:
            self.asked: list[tuple[float, float]] = []

        def uniform(self, low: float, high: float) -> float:
            self.asked.append((low, high))
            return 0.01

    camera = ToldCamera([CameraError("first")], CameraError("gone"))
    dice = Dice()
    camera._dice = dice  # type: ignore[assignment]
    camera.open()
    # Without a bound the fifteenth would be half a minute away, even with these dice.
    wait_until(lambda: len(camera.tries) > 30, "tries")
    camera.close()
    gaps_s = [(b - a) / 1e7 for a, b in zip(camera.tries, camera.tries[1:], strict=False)]
    # The dice make each delay a hundredth; what is measured is never less than that.
    least = [0.2, 0.4, 0.8, *[1.0] * 20]
    assert all(gap > wanted * 0.99 for gap, wanted in zip(gaps_s, least, strict=False))
    assert set(dice.asked) == {camera_reader.JITTER}
    low, high = camera_reader.JITTER
    assert low < 1 < high and camera_reader.REOPEN_LONGEST_S * high + 2.5 < 5


def test_a_bug_in_a_driver_is_logged_and_survived(
    told: MakeTold, caplog: pytest.LogCaptureFixture
) -> None:
    camera = told([1, ZeroDivisionError("oops")], [2])
    wait_until(lambda: len(camera.sources) == 2, "a second connection")
    assert grabbed(camera, 1)
    assert "ZeroDivisionError: oops" in caplog.text
    assert camera.sources[0].closed


def test_open_tells_what_the_first_try_found() -> None:
    camera = ToldCamera(CameraError("no such camera", "plug it in"))
    with pytest.raises(CameraError, match="no such camera: plug it in"):
        camera.open()
    assert camera.tries and threading.active_count() < 20
    with pytest.raises(CameraError, match="not open"):
        camera.grab(0)


def test_a_connection_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metal_edge.daemon.cameras.stream.OPEN_TIMEOUT_S", -0.3)
    let_go = threading.Event()

    class Hanging(ToldCamera):
        def connect(self) -> Told:
            let_go.wait(30)
            return super().connect()

    camera = Hanging([1])
    began = time.monotonic()
    with pytest.raises(CameraError, match="did not answer"):
        camera.open()
    assert time.monotonic() - began < 15
    let_go.set()
    wait_until(lambda: bool(camera.sources) and camera.sources[0].closed, "its late connection")


def test_a_read_that_never_returns_gets_a_new_thread_so_many_times(
    told: MakeTold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(camera_reader, "HANGS_AFTER_S", 0.0)
    for_ever = threading.Event()
    stuck: list[Step] = [lambda: for_ever.wait(60), 99]
    camera = told(stuck, stuck, [5], timeout_s=0.05)
    assert grabbed(camera, 1)
    assert len(camera.tries) == 3
    # What the left-behind threads find out later reaches nobody.
    for_ever.set()
    wait_until(lambda: all(source.closed for source in camera.sources[:2]), "their end")
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.01)

    for_ever.clear()
    hopeless = told(stuck, timeout_s=0.01)
    wait_until(lambda: _silent(hopeless) and len(hopeless.tries) > MOST_LEFT_BEHIND, "all tries")
    for _ in range(5):
        assert _silent(hopeless)
    assert len(hopeless.tries) == MOST_LEFT_BEHIND + 1
    assert caplog.text.count("again and again") == 1
    for_ever.set()


def _silent(camera: StreamCamera) -> bool:
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.03)
    return True


def test_the_deciding_thread_never_waits_for_the_driver(told: MakeTold) -> None:
    for_ever = threading.Event()
    camera = told([lambda: for_ever.wait(60)], on_request=True, mode="triggered")
    camera.trigger(None)
    began = time.monotonic()
    camera.trigger(None)
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.1)
    camera.close()
    assert time.monotonic() - began < 15
    for_ever.set()


def test_the_end_of_a_file(told: MakeTold) -> None:
    camera = told([1, EndOfStreamError("end", "loop")])
    wait_until(lambda: camera._reader is not None and camera._reader.join(0), "its thread's end")
    assert camera.grab(0).seq == 1
    with pytest.raises(EndOfStreamError):
        camera.grab(0)
    triggered = told([EndOfStreamError("end", "loop")], mode="triggered")
    with pytest.raises(CameraTimeoutError, match="no more images"):
        triggered.grab(5)


def test_a_file_without_a_frame_does_not_turn_in_circles(told: MakeTold) -> None:
    camera = told([EndOfStreamError("end")], loop=True)
    wait_until(lambda: len(camera.tries) >= 3, "three rounds")
    assert camera.tries[2] - camera.tries[0] > 0.1e9


def test_errors_that_are_kept_hold_nothing_of_the_driver(told: MakeTold) -> None:
    """A traceback holds every local variable: the camera would stay busy for the next try."""
    camera = told(
        [TornFrameError("half", "", 1), CameraError("gone")], CameraError("gone"), **HARDWARE
    )
    with pytest.raises(TornFrameError) as torn:
        camera.grab(1)
    frames = torn.traceback
    assert not any("camera_reader" in str(entry.path) for entry in frames)
    wait_until(lambda: len(camera.tries) > 1, "a second try")
    error = camera._reader.last_error if camera._reader else None
    assert error is not None and error.__traceback__ is None and error.__cause__ is None


def test_fifty_reopenings_leave_no_thread_behind(told: MakeTold) -> None:
    before = threading.active_count()
    camera = told([1, CameraError("again")])
    camera._dice.uniform = lambda low, high: 0.001  # type: ignore[method-assign]
    wait_until(lambda: len(camera.tries) > 50, "fifty reopenings")
    assert threading.active_count() == before + 1
    assert all(source.closed for source in camera.sources[:50])
    for _ in range(50):
        camera.close()
        camera.open()
    camera.close()
    assert threading.active_count() == before
