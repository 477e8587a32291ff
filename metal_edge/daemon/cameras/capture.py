"""Cameras behind OpenCV's VideoCapture: video files, V4L2 devices, RTSP streams.

`read()` keeps old frames after a pause and hands them out as good ones after a stall; a frame
whose `read()` took too long is therefore thrown away and the capture opened anew.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from metal_edge.daemon.cameras import CameraError, EndOfStreamError
from metal_edge.daemon.cameras.device_time import ClockMap
from metal_edge.daemon.cameras.options import (
    Options,
    parse_options,
    refuse_options,
    refuse_settings,
)
from metal_edge.daemon.cameras.source import Exposure
from metal_edge.daemon.cameras.stream import OPEN_TIMEOUT_S, StreamCamera
from metal_edge.daemon.cameras.video_file import is_cut_off
from metal_edge.daemon.clock import Clock
from metal_edge.domain import Image, TimeSource
from metal_edge.settings import CameraSettings

# A stream is believed after so long even if none of its pictures had to be waited for.
CATCH_UP_NS = 3_000_000_000
# How many pictures of a stream may lie in the sockets between its server and us.
SOCKET_FRAMES = 1000


class CaptureSource:
    """One open VideoCapture. Its frames are stamped with their arrival."""

    never_silent = False  # `read` notices a stall by itself
    on_request = False

    def __init__(self, capture: Any, name: str, clock: Clock, timeout_s: float) -> None:
        self.capture = capture
        self._name = name
        self._clock = clock
        self._late_ns = round(timeout_s * 1e9)
        self._first = True

    def request(self) -> None:
        """See `Source.request`; never called."""

    def read(self, timeout_s: float) -> Exposure | None:
        """See `Source.read`; OpenCV blocks for as long as it likes."""
        del timeout_s
        began_ns = self._clock.mono_ns()
        ok, picture = self.capture.read()
        now_ns = self._clock.mono_ns()
        late, first = now_ns - began_ns > self._late_ns, self._first
        self._first = False
        if not ok or (late and not first):
            raise CameraError(
                f"camera {self._name} stalled", "check cable, power and camera.timeout_s"
            )
        # The first read may wait for a key frame: late, so not used, but no stall either.
        return None if late else self.exposure(picture, began_ns, now_ns)

    def exposure(self, picture: Any, began_ns: int, now_ns: int) -> Exposure:
        """What was read between the two moments."""
        return Exposure(_to_rgb(picture), now_ns, began_ns, TimeSource.ARRIVAL)

    def close(self) -> None:
        """See `Source.close`."""
        self.capture.release()


class CaptureCamera(StreamCamera):
    """One VideoCapture at a time. Subclasses say how to open it.

    Triggered: `grab` waits for a frame whose `read()` began after the trigger. Exposure is not
    under control, so the part must stand still; a camera with a trigger input is better.
    """

    def capture(self) -> cv2.VideoCapture:
        """A new capture; it may turn out not to be open."""
        raise NotImplementedError

    def connect(self) -> CaptureSource:
        """See `StreamCamera.connect`."""
        capture = self.capture()
        if not capture.isOpened():
            capture.release()
            raise CameraError(
                f"camera {self.name} cannot be opened", "check camera.uri, cable and power"
            )
        return self.source(capture)

    def source(self, capture: cv2.VideoCapture) -> CaptureSource:
        """Wraps a capture that is open."""
        return CaptureSource(capture, self.name, self._clock, self._settings.timeout_s)


class VideoSource(CaptureSource):
    """A file, read at the pace of a camera."""

    def __init__(self, capture: Any, name: str, clock: Clock, fps: float) -> None:
        super().__init__(capture, name, clock, timeout_s=0)
        self._period_ns = round(1e9 / fps)
        self._due_ns = clock.mono_ns()
        self._pause = threading.Event()

    def read(self, timeout_s: float) -> Exposure | None:
        """See `Source.read`."""
        wait_s = (self._due_ns - self._clock.mono_ns()) / 1e9
        self._pause.wait(min(max(wait_s, 0.0), timeout_s))
        if wait_s > timeout_s:
            return None
        began_ns = self._clock.mono_ns()
        ok, picture = self.capture.read()
        if not ok:
            raise EndOfStreamError(f"end of {self._name}", "set camera.loop to go on")
        self._due_ns = max(self._due_ns + self._period_ns, began_ns)
        return self.exposure(picture, began_ns, self._clock.mono_ns())


class VideoCamera(CaptureCamera):
    """A video file, played at `settings.fps`."""

    live = False

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        refuse_settings(settings, "a video file is as it is")
        refuse_options(settings)

    def connect(self) -> CaptureSource:
        """See `StreamCamera.connect`."""
        path = Path(self._settings.uri)
        try:
            cut_off = is_cut_off(path)
        except OSError as error:
            raise CameraError(
                f"video {str(path)!r} cannot be read ({error.strerror})",
                "set camera.uri to a video file",
            ) from error
        if cut_off:
            raise CameraError(f"video {path} is cut off", "copy it again from its source")
        return super().connect()

    def capture(self) -> cv2.VideoCapture:
        """See `CaptureCamera.capture`."""
        return cv2.VideoCapture(self._settings.uri, cv2.CAP_FFMPEG)

    def source(self, capture: cv2.VideoCapture) -> VideoSource:
        """See `CaptureCamera.source`."""
        return VideoSource(capture, self.name, self._clock, self._settings.fps)


class RtspOptions(Options):
    """`[camera.options]` of kind rtsp."""

    #: From exposure to arrival, at least: encoder, network, decoder.
    latency_ms: float = Field(default=0.0, ge=0, le=10_000, allow_inf_nan=False)


class RtspSource(CaptureSource):
    """A stream whose pictures were taken a known time before they arrive.

    Servers begin with what they have in store, and sockets keep what comes while nobody reads:
    dozens of old pictures in a row, each of which `read` hands out at once as a good one. So a
    picture counts only from the first one that `read` had to wait for, and the stream's own time
    stamps say how long each later one has waited.
    """

    def __init__(
        self, capture: Any, name: str, clock: Clock, timeout_s: float, *, latency_ms: float
    ) -> None:
        super().__init__(capture, name, clock, timeout_s)
        self._latency_ns = round(latency_ms * 1e6)
        self._times = ClockMap(SOCKET_FRAMES)
        self._opened_ns = clock.mono_ns()
        self._position_ns = 0
        self._caught_up = False

    def read(self, timeout_s: float) -> Exposure | None:
        """See `Source.read`."""
        exposure = super().read(timeout_s)
        return exposure if self._caught_up else None

    def exposure(self, picture: Any, began_ns: int, now_ns: int) -> Exposure:
        """See `CaptureSource.exposure`."""
        position_ns = round(self.capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        step_ns, self._position_ns = position_ns - self._position_ns, position_ns
        waited = 0 < step_ns <= 2 * (now_ns - began_ns)
        if not self._caught_up and (waited or now_ns - self._opened_ns > CATCH_UP_NS):
            self._caught_up = True
        # A stream without time stamps stands at 0: then all that is known is the arrival.
        came_ns = self._times.map(position_ns, now_ns) if position_ns > 0 else now_ns
        earliest_ns = min(began_ns, came_ns) - self._latency_ns
        return super().exposure(picture, earliest_ns, came_ns - self._latency_ns)


class RtspCamera(CaptureCamera):
    """An RTSP stream through FFmpeg; by TCP, OpenCV's default."""

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        refuse_settings(settings, "set it on the camera's own pages")
        self._options = parse_options(settings, RtspOptions)

    def source(self, capture: cv2.VideoCapture) -> RtspSource:
        """See `CaptureCamera.source`."""
        timeout_s, latency_ms = self._settings.timeout_s, self._options.latency_ms
        return RtspSource(capture, self.name, self._clock, timeout_s, latency_ms=latency_ms)

    def capture(self) -> cv2.VideoCapture:
        """See `CaptureCamera.capture`."""
        limits = [
            int(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC),
            round(OPEN_TIMEOUT_S * 1000),
            int(cv2.CAP_PROP_READ_TIMEOUT_MSEC),
            # A little more than counts as late, so that the verdict on a late frame is ours.
            round(self._settings.timeout_s * 1000) + 500,
        ]
        return cv2.VideoCapture(self._settings.uri, cv2.CAP_FFMPEG, limits)


def _to_rgb(bgr: Any) -> Image:
    """uint8 [H, W, 3] RGB from OpenCV's BGR."""
    return np.ascontiguousarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
