"""A real GigE Vision stream over loopback, from Aravis' fake camera: whole, torn, and gone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.broker import wait_until
from support.camera_stand_ins import Open, Process, held, next_frame, silence

from metal_edge.daemon.cameras import (
    Camera,
    CameraError,
    CameraTimeoutError,
    FrameOverflowError,
    TornFrameError,
)
from metal_edge.domain import TimeSource

BACK_WITHIN_S = 5.0
# The counter of the fake begins at 65400, near the end of GigE Vision's 16 bits.
PAST_THE_WRAP = 65535 - 65400 + 20
SMALL = {"Width": 256, "Height": 16}
Fake = Callable[..., Process]


def gige(opened: Open, **settings: Any) -> Camera:
    return opened("aravis", uri="127.0.0.1", **{"mode": "latest", "timeout_s": 0.5, **settings})


def test_pictures_with_the_cameras_own_time_and_counter(opened: Open, fake: Fake) -> None:
    fake()
    camera = gige(opened)
    frames = [next_frame(camera) for _ in range(20)]
    assert {frame.image.shape for frame in frames} == {(512, 512, 3)}
    assert {frame.time_source for frame in frames} == {TimeSource.CAMERA}
    times = [frame.t_mono_ns for frame in frames]
    assert times == sorted(times) and times[-1] <= time.monotonic_ns()
    assert time.monotonic_ns() - times[-1] < 1e9


@pytest.mark.parametrize(("name", "grey"), [("mono8", True), ("bayer_rg8", False), ("rgb8", False)])
def test_pixel_formats(opened: Open, fake: Fake, name: str, grey: bool) -> None:
    fake()
    frame = next_frame(gige(opened, pixel_format=name, exposure_us=3000))
    assert frame.pixel_format == name
    assert (frame.image[..., 0] == frame.image[..., 2]).all() == grey


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"exposure_us": 1}, r"ExposureTimeAbs cannot be 1\.0: the camera allows 10 to 1e\+07"),
        ({"pixel_format": "mono12p"}, r"PixelFormat cannot be Mono12p: the camera allows .*Mono8"),
        ({"gain_db": 3}, r"no node Gain .*camera\.gain_db"),
        ({"options": {"GainRaw": 11}}, r"GainRaw cannot be 11: the camera allows 0 to 10"),
        ({"options": {"TriggerSoftware": 1}}, r"TriggerSoftware holds no value"),
        ({"mode": "triggered", "trigger_source": "Line7"}, r"Line7: the camera allows Line0"),
    ],
)
def test_a_setting_that_the_camera_refuses(
    opened: Open, fake: Fake, wanted: dict[str, Any], message: str
) -> None:
    fake()
    with pytest.raises(CameraError, match=message):
        gige(opened, **wanted)
    # The failed attempt let go of the camera.
    assert next_frame(gige(opened))


def test_one_picture_per_software_trigger(opened: Open, fake: Fake) -> None:
    fake()
    camera = gige(opened, mode="triggered")
    for _ in range(5):
        asked_ns = time.monotonic_ns()
        camera.trigger(None)
        assert next_frame(camera).t_mono_ns >= asked_ns
        with pytest.raises(CameraTimeoutError):
            camera.grab(0.1)


def test_every_exposure_in_order_past_the_end_of_a_16_bit_counter(opened: Open, fake: Fake) -> None:
    """The fake has no input; it runs free behind the camera's FIFO."""
    fake()
    camera = gige(opened, mode="hardware", trigger_source="Line0", options={"TriggerMode": "Off"})
    numbers = [next_frame(camera).seq for _ in range(PAST_THE_WRAP)]
    assert {b - a for a, b in itertools.pairwise(numbers)} == {1}


def test_exposures_that_nobody_grabs_overflow(opened: Open, fake: Fake) -> None:
    fake()
    wired = {"mode": "hardware", "trigger_source": "Line0", "options": {"TriggerMode": "Off"}}
    camera = gige(opened, fifo=3, **wired)
    first = next_frame(camera).seq
    time.sleep(0.5)  # twelve exposures of the camera's own pace
    assert [next_frame(camera).seq - first for _ in range(3)] == [1, 2, 3]
    with pytest.raises(FrameOverflowError):
        camera.grab(1)
    assert next_frame(camera).seq - first > 4


@pytest.mark.parametrize(("per_thousand", "options"), [("5", {}), ("100", SMALL)])
def test_lost_packets_are_torn_frames_with_their_number(
    opened: Open, fake: Fake, per_thousand: str, options: dict[str, int]
) -> None:
    """Small pictures lose their first packet as well, and with it their number."""
    fake("-r", per_thousand)
    camera = gige(
        opened,
        mode="hardware",
        trigger_source="Line0",
        fifo=64,
        options={**options, "TriggerMode": "Off"},
    )
    whole: list[int] = []
    torn: list[int] = []

    def enough() -> bool:
        try:
            whole.append(next_frame(camera).seq)
        except TornFrameError as error:
            assert error.seq is not None, error
            torn.append(error.seq)
        return len(whole) > 5 and len(torn) > 5 and len(whole) + len(torn) > 40

    wait_until(enough, "frames of both kinds", 60)
    both = sorted(whole + torn)
    assert both == list(range(both[0], both[0] + len(both)))


def test_a_killed_camera_is_silent_and_its_successor_found_within_five_seconds(
    opened: Open, fake: Fake
) -> None:
    process = fake()
    camera = gige(opened)
    before = next_frame(camera)
    process.kill()
    wait_until(lambda: "silent" in silence(camera), "its reason")
    process.again()
    began = time.monotonic()
    after = next_frame(camera, BACK_WITHIN_S + 5)
    took_s = time.monotonic() - began
    print(f"back after {took_s:.1f} s")
    assert took_s < BACK_WITHIN_S
    assert after.seq > before.seq and after.t_mono_ns > before.t_mono_ns


def test_an_idle_triggered_camera_notices_that_it_was_lost(opened: Open, fake: Fake) -> None:
    process = fake()
    camera = gige(opened, mode="triggered")
    camera.trigger(None)
    next_frame(camera)
    process.kill()

    def told() -> bool:
        try:
            camera.grab(0.2)
        except CameraTimeoutError:
            return False
        except CameraError as error:
            assert "does not answer any more" in str(error)
            return True
        raise AssertionError("a frame without a trigger")

    wait_until(told, "control-lost", 20)
    process.again()

    def triggered() -> bool:
        camera.trigger(None)
        try:
            return camera.grab(0.5).image.any() > 0
        except CameraError:
            return False

    wait_until(triggered, "a frame of the new camera", 15)


def test_fifty_openings_leave_nothing_behind(opened: Open, fake: Fake) -> None:
    fake()
    camera = gige(opened)
    next_frame(camera)
    before = held()
    for _ in range(50):
        camera.close()
        camera.open()
        next_frame(camera)
    wait_until(lambda: held() <= before, f"no more than {before} descriptors and threads")


def test_nobody_there(opened: Open) -> None:
    with pytest.raises(CameraError, match=r"127\.0\.0\.9"):
        opened("aravis", uri="127.0.0.9")
