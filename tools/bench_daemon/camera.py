"""A camera whose capture callback is known to the nanosecond; kind `pattern`.

It is read by the daemon's own reading thread, as every driver is, and stamps each picture the
moment it has it. In free run it keeps its pace and numbers what nobody took.
"""

from __future__ import annotations

import time

import numpy as np
from pydantic import Field

from metal_edge.daemon.cameras import CameraError
from metal_edge.daemon.cameras.options import Options, parse_options
from metal_edge.daemon.cameras.source import Exposure, Source
from metal_edge.daemon.cameras.stream import StreamCamera
from metal_edge.daemon.clock import Clock
from metal_edge.domain import Image, TimeSource
from metal_edge.settings import CameraMode, CameraSettings

# A late thread makes up for so many pictures, as a driver's buffers would; then it lost them.
BUFFERS = 8


class PatternOptions(Options):
    """`[camera.options]`.

    Attributes:
        width, height: of the pictures.
        exposure_ms: from the request to the picture, where there is a request.
        lost_every_s: the device is gone after so many seconds, and has to be opened anew.
    """

    width: int = Field(default=256, ge=8, le=4096)
    height: int = Field(default=256, ge=8, le=4096)
    exposure_ms: float = Field(default=2.0, ge=0, le=1000)
    lost_every_s: float | None = Field(default=None, gt=0)


class PatternSource:
    """One connection; see `Source`."""

    def __init__(self, settings: CameraSettings, options: PatternOptions, clock: Clock) -> None:
        self.on_request = settings.mode is CameraMode.TRIGGERED
        self.never_silent = not self.on_request
        self._clock = clock
        self._exposure_ns = round(options.exposure_ms * 1e6)
        self._period_ns = round(1e9 / settings.fps)
        shape = (options.height, options.width, 3)
        self._picture: Image = np.random.default_rng(1).integers(60, 120, shape, dtype=np.uint8)
        now_ns = clock.mono_ns()
        self._due_ns: int | None = None if self.on_request else now_ns
        lost_s = options.lost_every_s
        self._gone_ns = None if lost_s is None else now_ns + round(lost_s * 1e9)
        self._seq = 0

    def request(self) -> None:
        """See `Source.request`."""
        self._due_ns = self._clock.mono_ns() + self._exposure_ns

    def read(self, timeout_s: float) -> Exposure | None:
        """See `Source.read`."""
        now_ns = self._clock.mono_ns()
        if self._gone_ns is not None and now_ns >= self._gone_ns:
            raise CameraError("the pattern camera is gone, as it was told to be", "wait")
        due_ns = self._due_ns
        if due_ns is None or due_ns - now_ns > timeout_s * 1e9:
            time.sleep(timeout_s)
            return None
        time.sleep(max(0, due_ns - now_ns) / 1e9)
        return self._expose(due_ns)

    def close(self) -> None:
        """See `Source.close`."""

    def _expose(self, due_ns: int) -> Exposure:
        now_ns = self._clock.mono_ns()  # the capture callback
        self._seq += 1
        if self.on_request:
            self._due_ns = None
        else:
            behind = max(0, (now_ns - due_ns) // self._period_ns - BUFFERS)
            self._seq += behind
            self._due_ns = due_ns + (1 + behind) * self._period_ns
        image = self._picture.copy()
        image[0, :4, 0] = self._seq >> np.arange(0, 32, 8) & 255  # never the same one twice
        return Exposure(image, now_ns, now_ns, TimeSource.DRIVER, seq=self._seq)


class PatternCamera(StreamCamera):
    """See the module."""

    def connect(self) -> Source:
        """See `Connect`."""
        options = parse_options(self._settings, PatternOptions)
        return PatternSource(self._settings, options, self._clock)
