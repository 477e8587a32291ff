"""V4L2 devices of the kernel, through OpenCV: buffer times, controls, raw pixel formats.

OpenCV converts a whole buffer whatever the driver has put into it: of half a frame, the rest is an
older picture, and a JPEG that cannot be decoded leaves all of the older one. So buffers are taken
as they are, at their own length, and converted here.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from metal_edge.daemon.cameras import CameraError, TornFrameError
from metal_edge.daemon.cameras.capture import CaptureCamera, CaptureSource
from metal_edge.daemon.cameras.device_time import ExposureBegin
from metal_edge.daemon.cameras.options import Options, parse_options, refuse_settings
from metal_edge.daemon.cameras.pixel_formats import (
    FORMATS,
    PixelDataError,
    to_rgb,
    without_padding,
)
from metal_edge.daemon.cameras.source import Exposure
from metal_edge.daemon.clock import Clock
from metal_edge.domain import Image, TimeSource
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraSettings

log = logging.getLogger(__name__)

# V4L2 pixel formats by our names; https://docs.kernel.org/userspace-api/media/v4l/pixfmt.html
FOURCC = {
    "mono8": "GREY",
    "mono10": "Y10 ",
    "mono12": "Y12 ",
    "bayer_rg8": "RGGB",
    "bayer_gr8": "GRBG",
    "bayer_gb8": "GBRG",
    "bayer_bg8": "BA81",
    "bayer_rg10": "RG10",
    "bayer_gr10": "BA10",
    "bayer_gb10": "GB10",
    "bayer_bg10": "BG10",
    "bayer_rg12": "RG12",
    "bayer_gr12": "BA12",
    "bayer_gb12": "GB12",
    "bayer_bg12": "BG12",
    "yuv422": "UYVY",
    "yuyv": "YUYV",
    "rgb8": "RGB3",
    "bgr8": "BGR3",
}
JPEG = "jpeg"  # taken where the driver has it and `pixel_format` is `auto`
_BY_FOURCC = {cv2.VideoWriter.fourcc(*code): name for name, code in FOURCC.items()} | {
    cv2.VideoWriter.fourcc(*code): JPEG for code in ("MJPG", "JPEG")
}
EXPOSURE_UNIT_US = 100.0  # V4L2_CID_EXPOSURE_ABSOLUTE
MANUAL_EXPOSURE = 1  # V4L2_EXPOSURE_MANUAL


class V4l2Options(Options):
    """`[camera.options]` of kind v4l2."""

    width: int | None = Field(default=None, ge=1, le=65536)
    height: int | None = Field(default=None, ge=1, le=65536)
    gain: int | None = Field(default=None, description="in the driver's own units")


# struct v4l2_queryctrl and VIDIOC_QUERYCTRL, _IOWR('V', 36, 68 bytes); <linux/videodev2.h>
_QUERY = struct.Struct("=II32siiiiI8x")
_VIDIOC_QUERYCTRL = 3 << 30 | _QUERY.size << 16 | ord("V") << 8 | 36
_CONTROLS = {cv2.CAP_PROP_EXPOSURE: 0x009A0902, cv2.CAP_PROP_GAIN: 0x00980913}


def control_range(device: str, control: int) -> tuple[int, int] | None:
    """What the driver allows for a control, by its V4L2 id; None where it does not say."""
    answer = bytearray(_QUERY.pack(control, 0, b"", 0, 0, 0, 0, 0))
    try:
        handle = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.ioctl(handle, _VIDIOC_QUERYCTRL, answer)
    except OSError:
        return None
    finally:
        os.close(handle)
    return limits_of(bytes(answer))


def limits_of(answer: bytes) -> tuple[int, int]:
    """Smallest and largest value in a `struct v4l2_queryctrl`."""
    _, _, _, low, high, _, _, _ = _QUERY.unpack(answer)
    return low, high


def buffer_time(position_ms: float, now_ns: int) -> tuple[int, TimeSource]:
    """When a frame was complete, from what OpenCV calls the position of a V4L2 capture.

    That is the buffer's time stamp, on the monotonic clock for nearly all drivers. Some leave it
    at zero (OpenCV 8763) or use the wall clock: what does not lie in the past is not believed.
    One older than the `read` is: that frame waited in the driver.

    Returns:
        monotonic nanoseconds, and where they come from.
    """
    if 0 < position_ms * 1e6 <= now_ns:
        return round(position_ms * 1e6), TimeSource.DRIVER
    return now_ns, TimeSource.ARRIVAL


def decode_jpeg(data: NDArray[np.uint8]) -> Image:
    """RGB of one JPEG picture.

    Some decoders fill up what is missing and call it good, so the end must be there.

    Raises:
        PixelDataError: cut off, or no JPEG. Drivers may fill the buffer up with zeros.
    """
    whole = data.tobytes().rstrip(b"\0")
    if not (whole.startswith(b"\xff\xd8") and whole.endswith(b"\xff\xd9")):
        raise PixelDataError("a JPEG picture without its begin or end")
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if picture is None:
        raise PixelDataError("a JPEG picture that cannot be decoded")
    return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


class V4l2Source(CaptureSource):
    """One open device.

    Args:
        pixel_format: of the buffers; `auto`: OpenCV has converted them.
    """

    def __init__(
        self,
        capture: Any,
        name: str,
        clock: Clock,
        settings: CameraSettings,
        pixel_format: str,
    ) -> None:
        super().__init__(capture, name, clock, settings.timeout_s)
        self._name = name
        self._format = pixel_format
        exposure_us = settings.exposure_us
        self._begin = ExposureBegin(None if exposure_us is None else round(exposure_us * 1000))

    def exposure(self, picture: Any, began_ns: int, now_ns: int) -> Exposure:
        """See `CaptureSource.exposure`."""
        position_ms = self.capture.get(cv2.CAP_PROP_POS_MSEC)
        stamp_ns, source = buffer_time(position_ms, now_ns)
        earliest_ns = self._begin.earliest(stamp_ns)
        if self._format == "auto":
            plain = super().exposure(picture, began_ns, now_ns)
            image, name = plain.image, "bgr8"
        else:
            image, name = self._convert(picture), self._format
        # A frame from before the `read` lay in the driver, and may show the part before.
        return Exposure(image, stamp_ns, min(began_ns, earliest_ns), source, pixel_format=name)

    def _convert(self, picture: Any) -> Image:
        width = round(self.capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        height = round(self.capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        data = np.ascontiguousarray(picture).view(np.uint8).reshape(-1)
        try:
            if self._format == JPEG:
                return decode_jpeg(data)
            item = FORMATS[self._format]
            plain = without_padding(data, width, height, item)
            return to_rgb(plain, width, height, item, full_range=False)
        except PixelDataError as error:
            raise TornFrameError(
                f"camera {self._name}: {error}", "check cable and power"
            ) from error


class V4l2Camera(CaptureCamera):
    """A camera of the kernel, such as /dev/video0."""

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self._options = parse_options(settings, V4l2Options)
        plain = settings.model_copy(update={"exposure_us": None, "pixel_format": "auto"})
        refuse_settings(plain, "V4L2 knows no decibels: set camera.options.gain")
        if settings.pixel_format != "auto" and settings.pixel_format not in FOURCC:
            raise SettingsError(
                f"camera.pixel_format {settings.pixel_format!r} cannot be used with kind v4l2",
                f"use one of {', '.join(FOURCC)}",
            )

    def capture(self) -> cv2.VideoCapture:
        """See `CaptureCamera.capture`."""
        return cv2.VideoCapture(self._settings.uri, cv2.CAP_V4L2)

    def source(self, capture: cv2.VideoCapture) -> V4l2Source:
        """See `CaptureCamera.source`: the settings, each read back, then the first buffer."""
        try:
            self._configure(capture)
            pixel_format = self._agreed_format(capture)
        except CameraError:
            capture.release()
            raise
        return V4l2Source(capture, self.name, self._clock, self._settings, pixel_format)

    def _agreed_format(self, capture: Any) -> str:
        """Our name for what the driver sends, then taken as it is; `auto` for what we cannot."""
        if self._settings.pixel_format != "auto":
            return self._settings.pixel_format
        code = round(capture.get(cv2.CAP_PROP_FOURCC))
        name = _BY_FOURCC.get(code)
        if name is None:
            told = code.to_bytes(4, "little", signed=True)
            log.warning(
                "camera %s: OpenCV converts its pixel format %r, and would not notice half a"
                " buffer; set camera.pixel_format",
                self.name,
                told,
            )
            return "auto"
        self._set(capture, "pixel_format (as it is)", cv2.CAP_PROP_CONVERT_RGB, 0)
        return name

    def _configure(self, capture: Any) -> None:
        settings, options = self._settings, self._options
        if settings.pixel_format != "auto":
            code = cv2.VideoWriter.fourcc(*FOURCC[settings.pixel_format])
            self._set(capture, "pixel_format", cv2.CAP_PROP_FOURCC, code)
            self._set(capture, "pixel_format (as it is)", cv2.CAP_PROP_CONVERT_RGB, 0)
        for key, prop, value in (
            ("options.width", cv2.CAP_PROP_FRAME_WIDTH, options.width),
            ("options.height", cv2.CAP_PROP_FRAME_HEIGHT, options.height),
            ("options.gain", cv2.CAP_PROP_GAIN, options.gain),
        ):
            if value is not None:
                self._set(capture, key, prop, value)
        if settings.exposure_us is not None:
            self._set(capture, "exposure_us", cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL_EXPOSURE)
            steps = max(1, round(settings.exposure_us / EXPOSURE_UNIT_US))
            self._set(capture, "exposure_us", cv2.CAP_PROP_EXPOSURE, steps)

    def _set(self, capture: Any, key: str, prop: int, value: float) -> None:
        """Sets one property and looks whether it is so."""
        capture.set(prop, value)
        found = capture.get(prop)
        if found != value:
            control = _CONTROLS.get(prop)
            allowed = None if control is None else control_range(self._settings.uri, control)
            limits = "" if allowed is None else f"it allows {allowed[0]} to {allowed[1]}; "
            raise CameraError(
                f"camera {self.name}: camera.{key} wants {value:g}, the driver says {found:g}",
                f"{limits}see `v4l2-ctl -d {self.name} --list-ctrls --list-formats-ext`",
            )
