"""Reading, failing, hanging, reopening: real threads around sources that do as they are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from support.broker import wait_until

from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EarlyFrameError,
    EndOfStreamError,
    FrameOverflowError,
    TornFrameError,
)
from metal_edge.daemon.cameras import reader as camera_reader
from metal_edge.daemon.cameras.exposures import MAX_GAP
from metal_edge.daemon.cameras.source import Exposure
from metal_edge.daemon.cameras.stream import MOST_LEFT_BEHIND, StreamCamera
from metal_edge.daemon.clock import SystemClock
from metal_edge.domain import Frame, TimeSource
from metal_edge.settings import CameraSettings

Step = int | None | Exception | Callable[[], object]
IMAGE = np.zeros((2, 2, 3), np.uint8)


class Told:
    """A source that takes its steps from a list: a frame number, an error, None for silence, or
    something to do first. When the list is at its end it is silent."""

    def __init__(self, steps: Iterator[Step], on_request: bool, never_silent: bool) -> None:
        self.steps = steps
        self.on_request = on_request
        self.never_silent = never_silent
        self.requests = 0
        self.closed = False
        self.requested_ns = 0
        self.earliest_ns: int | None = None

    def request(self) -> None:
        self.requests += 1
        self.requested_ns = time.monotonic_ns()

    def read(self, timeout_s: float) -> Exposure | None:
        if self.on_request and not self.requests:
            return None
        step = next(self.steps, None)
        while callable(step):
            step()
            step = next(self.steps, None)
        if isinstance(step, Exception):
            raise step
        if step is None:
            time.sleep(min(timeout_s, 0.005))  # the camera's own pace
            return None
        now_ns = time.monotonic_ns()
        earliest_ns = self.requested_ns if self.on_request else self.earliest_ns or now_ns
        seq = step if step >= 0 else None
        return Exposure(IMAGE, now_ns, earliest_ns, TimeSource.CAMERA, seq)

    def close(self) -> None:
        self.closed = True


class ToldCamera(StreamCamera):
    """One list of steps per connection, or an error instead; the last one again and again."""

    def __init__(
        self,
        *connections: Iterable[Step] | Exception,
        on_request: bool = False,
        never_silent: bool = False,
        **settings: Any,
    ) -> None:
        given = {"kind": "told", "timeout_s": 0.2, "mode": "latest", **settings}
        super().__init__(CameraSettings(**given), SystemClock())
        self.connections = connections
        self.kind = (on_request, never_silent)
        self.sources: list[Told] = []
        self.tries: list[int] = []

    def connect(self) -> Told:
        place = min(len(self.tries), len(self.connections) - 1)
        self.tries.append(time.monotonic_ns())
        steps = self.connections[place]
        if isinstance(steps, Exception):
            raise steps
        self.sources.append(Told(iter(steps), *self.kind))
        return self.sources[-1]


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[..., ToldCamera]:
    def make(*connections: Iterable[Step] | Exception, **more: Any) -> ToldCamera:
        camera = ToldCamera(*connections, **more)
        request.addfinalizer(camera.close)
        camera.open()
        return camera

    return make


MakeTold = Callable[..., ToldCamera]


def grabbed(camera: StreamCamera, count: int) -> list[Frame | type[CameraError]]:
    """Frames and kinds of errors, silence left out."""
    out: list[Frame | type[CameraError]] = []

    def one() -> bool:
        try:
            out.append(camera.grab(1))
        except CameraTimeoutError:
            return False
        except CameraError as error:
            out.append(type(error))
        return len(out) == count

    wait_until(one, f"{count} frames or errors")
    return out


def numbers(items: list[Frame | type[CameraError]]) -> list[Any]:
    return [item.seq if isinstance(item, Frame) else item for item in items]


HARDWARE = {"mode": "hardware", "trigger_source": "Line1"}


def test_hardware_mode_yields_every_exposure_with_the_gaps_of_the_cameras_counter(
    told: MakeTold,
) -> None:
    camera = told([7, 8, TornFrameError("half", "", 9), 11, 12], **HARDWARE)
    first, *rest = grabbed(camera, 5)
    assert isinstance(first, Frame)
    assert numbers(rest) == [first.seq + 1, TornFrameError, first.seq + 4, first.seq + 5]


def test_a_torn_frame_says_which_one_it_was(told: MakeTold) -> None:
    camera = told([7, TornFrameError("half", "", 8), 9], **HARDWARE)
    first = camera.grab(1)
    with pytest.raises(TornFrameError) as caught:
        camera.grab(1)
    assert caught.value.seq == first.seq + 1


def test_more_exposures_than_places_are_told_once_and_leave_a_gap(told: MakeTold) -> None:
    taken = threading.Event()
    steps: list[Step] = [*range(1, 11), lambda: taken.wait(10), 11, 12]
    camera = told(steps, fifo=3, **HARDWARE)
    wait_until(lambda: camera._reader is not None and camera._reader.seq == 10, "all exposures")
    waited = grabbed(camera, 4)
    taken.set()
    assert numbers([*waited, *grabbed(camera, 2)]) == [1, 2, 3, FrameOverflowError, 11, 12]


def test_a_lost_connection_is_an_answer_where_each_exposure_counts(told: MakeTold) -> None:
    """And what comes after it is so far away that nobody takes the count for continued."""
    camera = told([1, 2, CameraError("unplugged")], [1, 2], **HARDWARE)
    items = grabbed(camera, 5)
    assert numbers(items)[:3] == [1, 2, CameraError]
    after = items[3]
    assert isinstance(after, Frame) and after.seq - 2 > MAX_GAP
    assert numbers(items)[4] == after.seq + 1


def test_silence_of_a_wired_camera_means_that_it_is_there(told: MakeTold) -> None:
    """So a line whose camera was away knows that it is back before there is a part."""
    camera = told([CameraError("unplugged")], CameraError("still out"), [], **HARDWARE)
    with pytest.raises(CameraError, match="unplugged"):
        camera.grab(1)
    kinds: list[type[CameraError]] = []

    def silent() -> bool:
        with pytest.raises(CameraError) as caught:
            camera.grab(0.01)
        kinds.append(caught.type)
        return caught.type is CameraTimeoutError

    wait_until(silent, "silence")
    assert len(camera.tries) == 3
    assert set(kinds[:-1]) == {CameraError}


def test_a_counter_that_begins_anew_never_looks_continued(told: MakeTold) -> None:
    items = numbers(grabbed(told([5, 6, 1, 2], **HARDWARE), 4))
    assert items[1] - items[0] == 1 and items[2] - items[1] > MAX_GAP and items[3] - items[2] == 1


def test_a_camera_without_a_counter_is_counted(told: MakeTold) -> None:
    assert numbers(grabbed(told([-1, -1, -1], **HARDWARE), 3)) == [1, 2, 3]


def test_one_exposure_per_request_and_none_unasked(told: MakeTold) -> None:
    camera = told([1, None, None, 2], on_request=True, mode="triggered")
    for seq in (1, 2):
        before_ns = time.monotonic_ns()
        camera.trigger(None)
        frame = camera.grab(5)
        assert frame.seq == seq and frame.t_mono_ns >= before_ns
        assert camera.sources[0].requests == seq


def test_the_frame_of_a_trigger_that_was_given_up_is_not_taken_for_the_next(
    told: MakeTold,
) -> None:
    """The first frame comes after the second trigger; the reader still knows whose it is."""
    late = threading.Event()
    camera = told([lambda: late.wait(10), 1, 2], on_request=True, mode="triggered", timeout_s=5)
    camera.trigger("first")
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.05)
    camera.trigger("second")
    late.set()
    assert camera.grab(5).seq == 2


def test_no_second_exposure_is_asked_for_while_the_first_is_under_way(told: MakeTold) -> None:
    """A camera ignores it, or the first one's frame would be taken for the second one's."""
    on_its_way, arrived = threading.Event(), threading.Event()

    def steps() -> Iterator[Step]:
        while not arrived.is_set():
            on_its_way.set()
            yield None
        yield 1
        yield 2

    camera = told(steps(), on_request=True, mode="triggered", timeout_s=5)
    camera.trigger("first")
    assert on_its_way.wait(5)
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.02)
    camera.trigger("second")
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.05)  # many looks at the camera, none of which asks again
    assert camera.sources[0].requests == 1
    arrived.set()
    assert camera.grab(5).seq == 2
    assert camera.sources[0].requests == 2


WIRED: dict[str, Any] = {"mode": "triggered", "trigger_source": "Line1"}


def test_a_command_after_its_exposure_does_not_get_the_next_part_s(told: MakeTold) -> None:
    """The wire was quicker than the broker. Nobody knows that this one was late, so it counts."""
    came, go_on = threading.Event(), threading.Event()
    camera = told([1, came.set, lambda: go_on.wait(10), 2, None, 3], **WIRED)
    assert came.wait(5)
    with pytest.raises(EarlyFrameError):
        camera.trigger("first")
    camera.trigger("second")
    go_on.set()
    assert camera.grab(5).seq == 2


def test_nor_while_the_picture_is_being_transferred(told: MakeTold) -> None:
    """Stamped before the command, received after it."""
    go_on = threading.Event()
    early_ns = time.monotonic_ns()

    class Slow(ToldCamera):
        def connect(self) -> Told:
            source = super().connect()
            source.earliest_ns = early_ns
            return source

    camera = Slow([lambda: go_on.wait(10), 1], **WIRED)
    camera.open()
    try:
        camera.trigger("first")
        go_on.set()
        with pytest.raises(EarlyFrameError):
            camera.grab(5)
    finally:
        camera.close()


def test_a_request_without_an_exposure_opens_the_camera_anew(told: MakeTold) -> None:
    camera = told([], [1], on_request=True, mode="triggered")
    camera.trigger(None)
    wait_until(lambda: len(camera.sources) == 2, "a second connection")
    assert camera.sources[0].closed
    camera.trigger(None)
    assert camera.grab(5).seq == 1


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
    wait_until(lambda: len(camera.tries) > 8, "tries")
    camera.close()
    gaps_s = [(b - a) / 1e7 for a, b in zip(camera.tries, camera.tries[1:], strict=False)]
    # The dice make each delay a hundredth; what is measured is never less than that.
    least = [0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
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
    assert time.monotonic() - began < 5
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
    assert time.monotonic() - began < 5
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
