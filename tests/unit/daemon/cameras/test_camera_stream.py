"""Frames, requests and the exposures that they get: real threads around a told source."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.broker import wait_until
from support.told_camera import HARDWARE, MakeTold, Step, Told, ToldCamera, grabbed, numbers

from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EarlyFrameError,
    FrameOverflowError,
    TornFrameError,
)
from metal_edge.daemon.cameras.exposures import MAX_GAP
from metal_edge.domain import Frame, TimeSource


def test_hardware_mode_yields_every_exposure_with_the_gaps_of_the_cameras_counter(
    told: MakeTold,
) -> None:
    camera = told([7, 8, TornFrameError("half", "", 9), 11, 12], **HARDWARE)
    first, *rest = grabbed(camera, 5)
    assert isinstance(first, Frame)
    assert numbers(rest) == [first.seq + 1, TornFrameError, first.seq + 4, first.seq + 5]


def test_a_frame_says_what_stamped_it_and_what_it_was_sent_as(told: MakeTold) -> None:
    before_ns = time.monotonic_ns()
    frame = told([1], camera_id="left").grab(1)
    assert (frame.time_source, frame.pixel_format) == (TimeSource.CAMERA, "mono12")
    assert (frame.camera_id, frame.frame_id) == ("left", "left-1")
    assert before_ns <= frame.t_mono_ns <= time.monotonic_ns()


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


def test_the_frame_of_a_trigger_that_was_given_up_is_not_taken_for_the_next(told: MakeTold) -> None:
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
