"""Pipelines through the appsink that Jetson cameras use: a test source stands in for the sensor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.broker import wait_until
from support.camera_stand_ins import Open, held, need, next_frame, silence

from metal_edge.daemon.cameras import Camera, CameraError
from metal_edge.domain import TimeSource


@pytest.fixture
def csi(opened: Open) -> Callable[..., Camera]:
    need("Gst", "1.0")

    def make(pipeline: str, **settings: Any) -> Camera:
        given = {"mode": "latest", "timeout_s": 0.5, **settings}
        return opened("csi", options={"pipeline": pipeline}, **given)

    return make


Csi = Callable[..., Camera]


def red(caps: str) -> str:
    return f"videotestsrc is-live=true pattern=red ! {caps},width=102,height=64,framerate=50/1"


@pytest.mark.parametrize("name", ["RGB", "BGR", "RGBx", "BGRx", "UYVY", "YUY2"])
def test_colours_in_rows_that_are_filled_up(csi: Csi, name: str) -> None:
    """102 pixels of three bytes make rows of 308 bytes."""
    frame = next_frame(csi(red(f"video/x-raw,format={name}")))
    expected = np.broadcast_to([255, 0, 0], (64, 102, 3)).astype(int)
    assert np.abs(frame.image.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("name", ["GRAY8", "GRAY16_LE"])
def test_grey(csi: Csi, name: str) -> None:
    frame = next_frame(csi(red(f"video/x-raw,format={name}")))
    assert np.unique(frame.image).tolist() == [81]  # BT.601, 16 to 235


def test_a_bayer_sensor(csi: Csi) -> None:
    frame = next_frame(csi(red("video/x-bayer,format=grbg")))
    assert (frame.image[8:-8, 8:-8] == [255, 0, 0]).all()


def test_stamps_are_the_pipelines_and_pictures_are_fresh(csi: Csi) -> None:
    camera = csi(red("video/x-raw,format=RGB"))
    frames = [next_frame(camera) for _ in range(20)]
    assert {frame.time_source for frame in frames} == {TimeSource.DRIVER}
    times = [frame.t_mono_ns for frame in frames]
    assert times == sorted(set(times))
    gaps_ms = np.diff(times) / 1e6
    assert abs(float(np.median(gaps_ms)) - 20) < 1  # 50 frames a second, by its own clock
    assert 0 <= time.monotonic_ns() - times[-1] < 1e9


def test_a_trigger_waits_for_a_picture_that_was_begun_later(csi: Csi) -> None:
    """A stamp says when it was complete; read-out and exposure took up to a period each."""
    camera = csi(red("video/x-raw,format=RGB"), mode="triggered")
    for _ in range(5):
        asked_ns = time.monotonic_ns()
        camera.trigger(None)
        assert next_frame(camera).t_mono_ns >= asked_ns + 2 * 20_000_000 - 1000


def test_a_stream_that_stops_is_opened_anew(csi: Csi) -> None:
    camera = csi("videotestsrc is-live=true num-buffers=5 ! video/x-raw,format=RGB,framerate=50/1")
    seen = [next_frame(camera).seq for _ in range(12)]
    assert seen == sorted(set(seen))


def test_a_sensor_that_falls_silent_is_opened_anew(csi: Csi) -> None:
    slow = "identity sleep-time=3000000"  # microseconds for each picture
    camera = csi(f"{red('video/x-raw,format=RGB')} ! {slow}", timeout_s=0.3)
    wait_until(lambda: "silent, it is opened anew" in silence(camera), "its reason")


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("nonsense_element", "nonsense_element"),
        ("videotestsrc ! video/x-raw,format=NV12", "does not run|negotiat|not-negotiated|stream"),
        ("v4l2src device=/dev/nowhere", "nowhere|does not run"),
    ],
)
def test_a_pipeline_that_cannot_run_says_why(csi: Csi, pipeline: str, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        csi(pipeline)


def test_fifty_openings_leave_nothing_behind(csi: Csi) -> None:
    camera = csi(red("video/x-raw,format=RGB"))
    next_frame(camera)
    before = held()
    for _ in range(50):
        camera.close()
        camera.open()
        next_frame(camera)
    wait_until(lambda: held() <= before, f"no more than {before} descriptors and threads")
