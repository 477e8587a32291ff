"""V4L2 without a device: buffer times, and properties of a capture that behaves like a driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.cameras import CameraError, TornFrameError
from metal_edge.daemon.cameras.mailbox import Mailbox
from metal_edge.daemon.cameras.v4l2 import (
    FOURCC,
    V4l2Camera,
    buffer_time,
    control_range,
    limits_of,
)
from metal_edge.daemon.clock import SystemClock
from metal_edge.domain import TimeSource
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraSettings


class Driver:
    """cv2.VideoCapture on a device whose driver keeps some properties as they are."""

    def __init__(self, picture: Any = None, stamp_ms: float = 0.0, stubborn: Any = ()) -> None:
        self.picture = picture
        self.values: dict[int, float] = {
            cv2.CAP_PROP_POS_MSEC: stamp_ms,
            cv2.CAP_PROP_FRAME_WIDTH: 4,
            cv2.CAP_PROP_FRAME_HEIGHT: 2,
        }
        self.stubborn = set(stubborn)
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def set(self, prop: int, value: float) -> bool:
        if prop not in self.stubborn:
            self.values[prop] = value
        return True  # OpenCV often says so whatever the driver did

    def get(self, prop: int) -> float:
        return self.values.get(prop, 0.0)

    def read(self) -> tuple[bool, Any]:
        return True, self.picture

    def release(self) -> None:
        self.released = True


def source(driver: Driver, **settings: Any) -> Any:
    class Camera(V4l2Camera):
        def capture(self) -> Any:
            return driver

    given = {"kind": "v4l2", "uri": "/dev/video0", **settings}
    return Camera(CameraSettings(**given), SystemClock()).connect()


@given(stamp_ns=st.integers(1, 10**15), age_ns=st.integers(0, 10**12))
def test_a_stamp_of_the_past_is_the_drivers(stamp_ns: int, age_ns: int) -> None:
    found_ns, kind = buffer_time(stamp_ns / 1e6, stamp_ns + age_ns + 1000)
    assert kind is TimeSource.DRIVER
    assert abs(found_ns - stamp_ns) <= 1000  # OpenCV hands out float milliseconds


@pytest.mark.parametrize("stamp_ms", [0.0, -1.0, 1.8e12, float("nan"), float("inf")])
def test_a_stamp_that_cannot_be_is_replaced_by_the_arrival(stamp_ms: float) -> None:
    """Zero (OpenCV 8763), or the wall clock, which lies far ahead of the monotonic one."""
    now_ns = 5_000 * 10**9
    assert buffer_time(stamp_ms, now_ns) == (now_ns, TimeSource.ARRIVAL)


def test_a_frame_that_waited_in_the_driver_is_as_old_as_its_stamp() -> None:
    old_ms = SystemClock().mono_ns() / 1e6 - 3000
    picture = np.zeros((2, 4, 3), np.uint8)
    exposure = source(Driver(picture, old_ms)).read(1)
    assert exposure.time_source is TimeSource.DRIVER
    age_s = (SystemClock().mono_ns() - exposure.t_mono_ns) / 1e9
    assert 2.9 < age_s < 10


PERIOD_MS = 33.0


@pytest.mark.parametrize(
    ("settings", "expected"), [({}, [2, 3]), ({"exposure_us": 5000}, [1, 2, 3])]
)
def test_a_picture_that_was_begun_before_the_trigger_is_not_taken(
    settings: Any, expected: list[int]
) -> None:
    """The stamp is the end of the frame: exposure and read-out took up to a period each."""
    driver = Driver(np.zeros((2, 4, 3), np.uint8))
    device = source(driver, **settings)
    first_ms = SystemClock().mono_ns() / 1e6 - 1000
    found = []
    # The trigger comes a little before the first frame ends.
    box = Mailbox(None)
    box.refuse_before(round((first_ms - 6) * 1e6))
    for number in range(4):
        driver.values[cv2.CAP_PROP_POS_MSEC] = first_ms + number * PERIOD_MS
        exposure = device.read(1)
        exposed_ms = 5.0 if settings else PERIOD_MS
        began_ns = exposure.t_mono_ns - (PERIOD_MS + exposed_ms) * 1e6
        assert exposure.earliest_ns <= began_ns + 1000, "not before the exposure can have begun"
        box.put(exposure, exposure.earliest_ns)
        if box.take(0) is not None:
            found.append(number)
    assert found == expected


def test_the_first_pictures_prove_nothing_of_when_they_were_begun() -> None:
    device = source(Driver(np.zeros((2, 4, 3), np.uint8)))
    assert [device.read(1).earliest_ns for _ in range(2)] == [0, 0]
    assert device.read(1).earliest_ns > 0


def test_settings_are_read_back() -> None:
    driver = Driver()
    wanted = {"exposure_us": 2500.0, "options": {"width": 640, "height": 480, "gain": 7}}
    source(driver, **wanted)
    assert driver.values[cv2.CAP_PROP_EXPOSURE] == 25  # steps of 100 us
    assert driver.values[cv2.CAP_PROP_AUTO_EXPOSURE] == 1  # by hand
    assert driver.values[cv2.CAP_PROP_GAIN] == 7
    for prop in (cv2.CAP_PROP_EXPOSURE, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_GAIN):
        driver = Driver(stubborn=[prop])
        with pytest.raises(CameraError, match=r"camera\.\S+ wants \d+, the driver says .*v4l2-ctl"):
            source(driver, **wanted)
        assert driver.released


def test_the_limits_of_a_control_as_the_kernel_lays_them_out(tmp_path: Path) -> None:
    """linux/videodev2.h: id, type, 32 bytes of name, then minimum, maximum, step, default."""
    name = b"Exposure Time, Absolute".ljust(32, b"\0")
    numbers = b"".join(n.to_bytes(4, "little", signed=True) for n in (-3, 5000, 1, 157, 0, 0, 0))
    answer = (0x009A0902).to_bytes(4, "little") + (1).to_bytes(4, "little") + name + numbers
    assert len(answer) == 68 and limits_of(answer) == (-3, 5000)
    (tmp_path / "file").touch()
    assert control_range(str(tmp_path / "file"), 0x009A0902) is None  # no such ioctl
    assert control_range(str(tmp_path / "none"), 0x009A0902) is None


def test_a_raw_format_is_converted_here() -> None:
    values = np.array([[0x0FF0, 0x0800, 0, 0x0010]] * 2, "<u2")
    driver = Driver(values)
    exposure = source(driver, pixel_format="mono12").read(1)
    assert exposure.image[0, :, 0].tolist() == [255, 128, 0, 1]
    assert exposure.pixel_format == "mono12"
    assert driver.values[cv2.CAP_PROP_CONVERT_RGB] == 0
    assert driver.values[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*FOURCC["mono12"])


def test_half_a_buffer_is_torn() -> None:
    driver = Driver(np.zeros((1, 4), "<u2"))
    with pytest.raises(TornFrameError, match="4x2 mono12 needs 16 bytes, got 8"):
        source(driver, pixel_format="mono12").read(1)


def agreed(code: str, picture: Any) -> Driver:
    """A driver that chose this format by itself."""
    driver = Driver(picture)
    driver.values[cv2.CAP_PROP_FOURCC] = cv2.VideoWriter.fourcc(*code)
    driver.values[cv2.CAP_PROP_CONVERT_RGB] = 1
    return driver


@pytest.mark.parametrize(("code", "name"), [("YUYV", "yuyv"), ("GREY", "mono8"), ("BA81", "")])
def test_whatever_format_comes_half_a_buffer_is_torn(code: str, name: str) -> None:
    """OpenCV would fill it up with an older picture."""
    size = 4 * 2 * (2 if code == "YUYV" else 1)
    driver = agreed(code, np.full((1, size), 128, np.uint8))
    exposure = source(driver).read(1)
    assert exposure.image.shape == (2, 4, 3)
    assert exposure.pixel_format == (name or "bayer_bg8")
    assert driver.values[cv2.CAP_PROP_CONVERT_RGB] == 0
    with pytest.raises(TornFrameError, match=f"needs {size} bytes, got {size // 2}"):
        source(agreed(code, np.zeros((1, size // 2), np.uint8))).read(1)


def test_rows_that_are_filled_up_are_no_torn_frame() -> None:
    padded = np.arange(16, dtype=np.uint8).reshape(2, 8)
    exposure = source(agreed("GREY", padded.reshape(1, -1))).read(1)
    assert exposure.image[..., 0].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]


def test_a_jpeg_without_its_end_is_torn() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].reshape(1, -1)
    for padding in (0, 100):
        whole = np.pad(jpeg, ((0, 0), (0, padding)))
        exposure = source(agreed("MJPG", whole)).read(1)
        assert exposure.pixel_format == "jpeg"
        assert exposure.image.tolist() == cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1].tolist()
    # All but the last mark: nothing is missing that a decoder needs.
    bad = (jpeg[:, : jpeg.size // 2], jpeg[:, :-2], jpeg[:, 1:], np.zeros((1, 0), np.uint8))
    for data in bad:
        with pytest.raises(TornFrameError, match="without its begin or end"):
            source(agreed("MJPG", data)).read(1)
    with pytest.raises(TornFrameError, match="cannot be decoded"):
        source(agreed("MJPG", np.array([[0xFF, 0xD8, 0xFF, 0xD9]], np.uint8))).read(1)


def test_a_format_that_only_opencv_can_convert_is_told(caplog: pytest.LogCaptureFixture) -> None:
    driver = agreed("NV12", np.zeros((2, 4, 3), np.uint8))
    assert source(driver).read(1).pixel_format == "bgr8"
    assert driver.values[cv2.CAP_PROP_CONVERT_RGB] == 1
    assert "b'NV12'" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"gain_db": 3.0}, r"camera\.gain_db .*options\.gain"),
        ({"pixel_format": "mono12p"}, r"pixel_format 'mono12p'"),
        ({"trigger_source": "Line1"}, r"trigger_source"),
        ({"mode": "hardware"}, "mode"),
        ({"options": {"widht": 3}}, r"camera\.options\.widht"),
        ({"options": {"width": "wide"}}, r"camera\.options\.width"),
    ],
)
def test_what_v4l2_cannot_do_is_refused(wanted: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        V4l2Camera(CameraSettings(kind="v4l2", uri="/dev/video0", **wanted), SystemClock())
