"""Cameras behind OpenCV's VideoCapture: video files, V4L2 devices, RTSP streams.

`read()` cannot be trusted to return (OpenCV 22677), keeps old frames after a pause, and hands
them out as good ones after a stall. So a thread reads all the time and keeps one newest frame,
a frame whose `read()` took too long is thrown away, and a stalled capture is opened anew.
"""

from __future__ import annotations

import logging
import random
import re
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from metal_edge.daemon.cameras import CameraError, CameraTimeoutError, EndOfStreamError
from metal_edge.daemon.clock import Clock
from metal_edge.domain import Frame, Image
from metal_edge.settings import CameraMode, CameraSettings

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
REOPEN_FIRST_S = 0.2
REOPEN_LONGEST_S = 2.0
CLOSE_TIMEOUT_S = 0.5


class CaptureCamera:
    """One VideoCapture with its reading thread. Subclasses say how to open it.

    Triggered: `grab` waits for a frame whose `read()` began after the trigger. Exposure is not
    under control, so the part must stand still; a camera with a trigger input is better.
    """

    live = True
    #: A file ends, and has to be slowed down to look like a camera.
    is_file = False

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random.Random()  # noqa: S311  (spreads retries, guards nothing)
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._not_before_ns = 0
        self._ended = False
        self._seq = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _capture(self) -> cv2.VideoCapture:
        """A new capture; it may turn out not to be open."""
        raise NotImplementedError

    def open(self) -> None:
        """See `Camera.open`."""
        capture = self._capture()
        if not capture.isOpened():
            capture.release()
            raise CameraError(
                f"camera {self._name} cannot be opened", "check camera.uri, cable and power"
            )
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._guarded_read, args=(capture,), name="camera", daemon=True
        )
        self._thread.start()

    def trigger(self, part_id: str | None) -> None:
        """See `Camera.trigger`: from now on only newer frames count."""
        del part_id  # the camera looks at whatever stands in front of it
        with self._changed:
            self._not_before_ns = self._clock.mono_ns()
            self._newest = None

    def grab(self, timeout_s: float) -> Frame:
        """See `Camera.grab`."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended, timeout_s)
            frame, self._newest = self._newest, None
        if frame is not None:
            return frame
        if self._ended and self._settings.mode is CameraMode.LATEST:
            raise EndOfStreamError(f"end of {self._name}", "set camera.loop to go on")
        if self._ended:
            raise CameraTimeoutError("no more images", "set camera.loop")
        raise CameraTimeoutError(
            f"camera {self._name} gave no frame in time", "check cable, power and frame rate"
        )

    def close(self) -> None:
        """See `Camera.close`. A `read()` that never returns is left behind."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                log.warning("camera %s does not return from a read; left behind", self._name)
        self._thread = None

    @property
    def _name(self) -> str:
        """For people and logs: without the password that a URI may carry."""
        return re.sub(r"//[^/@]*@", "//", self._settings.uri)

    def _guarded_read(self, capture: cv2.VideoCapture) -> None:
        """The thread. A bug here must be seen; the daemon then runs into grab timeouts."""
        try:
            self._read_for_ever(capture)
        except Exception:
            log.exception("camera %s: the reading thread failed", self._name)

    def _read_for_ever(self, capture: cv2.VideoCapture) -> None:
        current: cv2.VideoCapture | None = capture
        while current is not None:
            self._read_until_stall(current)
            current.release()
            if self.is_file and not self._settings.loop:
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()
                return
            current = self._reopen()

    def _read_until_stall(self, capture: cv2.VideoCapture) -> None:
        """Returns when the capture is at its end, stalled, or no longer wanted."""
        first = True
        pace_s = 1 / self._settings.fps if self.is_file else 0.0
        while not self._stop.is_set():
            began_ns = self._clock.mono_ns()
            ok, bgr = capture.read()
            late = self._clock.mono_ns() - began_ns > self._settings.timeout_s * 1e9
            if not ok or (late and not first):
                if not self.is_file:
                    log.warning("camera %s stalled", self._name)
                return
            # The first read may wait for a key frame: late, so not used, but no stall either.
            if not late:
                self._keep(bgr, began_ns)
            first = False
            if pace_s:
                self._stop.wait(max(0.0, pace_s - (self._clock.mono_ns() - began_ns) / 1e9))

    def _keep(self, bgr: Any, began_ns: int) -> None:
        now_ns, utc_ns = self._clock.mono_ns(), self._clock.utc_ns()
        self._seq += 1
        name = f"{self._settings.camera_id}-{self._seq}"
        image = _to_rgb(bgr)
        frame = Frame(image, self._seq, self._settings.camera_id, name, now_ns, utc_ns)
        with self._changed:
            if began_ns >= self._not_before_ns:
                self._newest = frame
                self._changed.notify_all()

    def _reopen(self) -> cv2.VideoCapture | None:
        """A capture that is open; tries for as long as the camera is wanted, ever less often."""
        delay_s = 0.0 if self.is_file else REOPEN_FIRST_S
        while not self._stop.wait(delay_s * self._random.uniform(0.8, 1.2)):
            capture = self._capture()
            if capture.isOpened():
                log.info("camera %s is open again", self._name)
                return capture
            capture.release()
            delay_s = min(max(2 * delay_s, REOPEN_FIRST_S), REOPEN_LONGEST_S)
        return None


class VideoCamera(CaptureCamera):
    """A video file, played at `settings.fps`."""

    live = False
    is_file = True

    def open(self) -> None:
        """See `Camera.open`."""
        if not Path(self._settings.uri).is_file():
            raise CameraError(
                f"video {self._settings.uri!r} not found", "set camera.uri to a video file"
            )
        super().open()

    def _capture(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(self._settings.uri, cv2.CAP_FFMPEG)


class V4l2Camera(CaptureCamera):
    """A camera of the kernel, such as /dev/video0."""

    def _capture(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(self._settings.uri, cv2.CAP_V4L2)


class RtspCamera(CaptureCamera):
    """An RTSP stream through FFmpeg; by TCP, OpenCV's default."""

    def _capture(self) -> cv2.VideoCapture:
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
