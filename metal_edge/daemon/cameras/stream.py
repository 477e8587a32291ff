"""A camera that is read by a thread of its own and opened anew when it fails.

Drivers hang, raise what they like, and hand out old pictures. So no driver is ever called by
the thread that decides: a `Reader` does all of it, from connecting to closing, and leaves its
frames in a mailbox. A reader that hangs is left behind, and another one takes its place.
"""

from __future__ import annotations

import logging
import random
import re

from metal_edge.daemon.cameras import CameraError, CameraTimeoutError, EndOfStreamError
from metal_edge.daemon.cameras.mailbox import Mailbox
from metal_edge.daemon.cameras.reader import Reader
from metal_edge.daemon.cameras.source import Source
from metal_edge.daemon.clock import Clock
from metal_edge.domain import Frame
from metal_edge.settings import CameraMode, CameraSettings

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 0.5
# Each one left behind holds memory and perhaps the device: more would hide a broken driver.
MOST_LEFT_BEHIND = 4


class StreamCamera:
    """The camera that the daemon sees; subclasses say how to connect."""

    live = True

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._dice = random.Random()  # noqa: S311  (spreads retries, guards nothing)
        self._reader: Reader | None = None
        self._mailbox = self._new_mailbox()
        self._left_behind: list[Reader] = []
        self._given_up = False

    def connect(self) -> Source:
        """See `Connect`; called by the reading thread, again and again."""
        raise NotImplementedError

    def open(self) -> None:
        """See `Camera.open`: waits for the first connection, at most `OPEN_TIMEOUT_S`."""
        if self._reader is not None:
            return
        reader = self._reader = self._start(first_seq=0)
        tried = reader.tried.wait(OPEN_TIMEOUT_S + 0.5)  # a driver's own limit comes first
        if reader.opened:
            return
        error = reader.last_error
        self.close()
        if not tried or error is None:
            raise CameraError(
                f"camera {self.name} did not answer within {OPEN_TIMEOUT_S:g} s",
                "check camera.uri, cable and power",
            )
        raise error

    def trigger(self, part_id: str | None) -> None:
        """See `Camera.trigger`; never waits for the camera."""
        del part_id  # the camera looks at whatever stands in front of it
        reader = self._opened()
        self._mailbox.refuse_before(self._clock.mono_ns())
        reader.request()

    def grab(self, timeout_s: float) -> Frame:
        """See `Camera.grab`."""
        reader = self._opened()
        try:
            frame = self._mailbox.take(timeout_s)
        except EndOfStreamError as end:
            if self._settings.mode is CameraMode.LATEST:
                raise
            raise CameraTimeoutError("no more images", end.remedy) from end
        if frame is not None:
            return frame
        self._replace_if_it_hangs(reader)
        error = reader.last_error
        why = f" ({error.what})" if error is not None else ""
        if self._settings.mode is CameraMode.HARDWARE and not reader.connected:
            raise CameraError(
                f"camera {self.name} is not connected{why}",
                "check cable and power" if error is None else error.remedy,
            )
        raise CameraTimeoutError(
            f"camera {self.name} gave no frame in time{why}",
            "check cable, power, trigger and frame rate" if error is None else error.remedy,
        )

    def close(self) -> None:
        """See `Camera.close`. A driver that never returns is left behind."""
        reader, self._reader = self._reader, None
        if reader is None:
            return
        reader.stop()
        if not reader.join(CLOSE_TIMEOUT_S):
            log.warning("camera %s: its driver does not return; left behind", self.name)
        self._mailbox = self._new_mailbox()

    @property
    def name(self) -> str:
        """For people and logs: without the password that a URI may carry."""
        return re.sub(r"//[^/]*@", "//", self._settings.uri) or self._settings.camera_id

    def _new_mailbox(self) -> Mailbox:
        settings = self._settings
        wired = settings.mode is CameraMode.TRIGGERED and settings.trigger_source != "software"
        in_order = settings.mode is CameraMode.HARDWARE
        return Mailbox(settings.fifo if in_order else None, all_count=wired)

    def _start(self, first_seq: int) -> Reader:
        reader = Reader(
            self._settings,
            self._clock,
            self.connect,
            mailbox=self._mailbox,
            first_seq=first_seq,
            dice=self._dice,
        )
        reader.start()
        return reader

    def _opened(self) -> Reader:
        if self._reader is None:
            raise CameraError(f"camera {self.name} is not open", "open it first")
        return self._reader

    def _replace_if_it_hangs(self, reader: Reader) -> None:
        """A hung driver call cannot be ended, only walked away from; so many times at most."""
        if not reader.hangs(self._clock.mono_ns()):
            return
        self._left_behind = [r for r in self._left_behind if not r.join(0)]
        if len(self._left_behind) >= MOST_LEFT_BEHIND:
            if not self._given_up:
                log.error("camera %s: its driver hangs again and again; restart", self.name)
            self._given_up = True
            return
        self._given_up = False
        log.error("camera %s: its driver hangs; a new thread takes over", self.name)
        reader.stop()
        self._left_behind.append(reader)
        self._mailbox = self._new_mailbox()  # the old thread cannot spoil what it cannot reach
        self._reader = self._start(first_seq=reader.seq)
