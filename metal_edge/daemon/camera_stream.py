"""A camera that is read by a thread of its own and opened anew when it fails.

Drivers hang, raise what they like, and hand out old pictures. So no driver is ever called by
the thread that decides: a `Reader` does all of it, from connecting to closing, and leaves its
frames in a mailbox. A reader that hangs is left behind, and another one takes its place.
"""

from __future__ import annotations

import logging
import random
import re
import threading
from dataclasses import dataclass
from typing import Protocol

from metal_edge.daemon.camera_mailbox import Mailbox
from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EndOfStreamError,
    TornFrameError,
)
from metal_edge.daemon.clock import Clock
from metal_edge.domain import Frame, Image, TimeSource
from metal_edge.settings import CameraMode, CameraSettings

log = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 5.0
REOPEN_FIRST_S = 0.2
REOPEN_LONGEST_S = 2.0
JITTER = (0.8, 1.2)  # cameras that lost the same switch do not come back in step
CLOSE_TIMEOUT_S = 0.5
POLL_S = 0.1  # a source is asked for so long at a time, so that `close` is soon heard
# No driver call takes so long but one that hangs; its thread is given up.
HANGS_AFTER_S = 10.0
# `hardware`: nobody knows what was lost before a counter that began anew. A gap of more than
# `exposures.MAX_GAP` says so.
RESTART_GAP = 1000
# Each one left behind holds memory and perhaps the device: more would hide a broken driver.
MOST_LEFT_BEHIND = 4


@dataclass(frozen=True, slots=True, eq=False)
class Exposure:
    """One picture as a source gives it.

    Attributes:
        image: uint8 [H, W, 3] RGB, not written to again.
        t_mono_ns: time of exposure, or the nearest known.
        earliest_ns: the exposure did not begin before this, so much is certain.
        seq: the camera's own frame counter; None where it has none.
        pixel_format: what the camera sent, before it became RGB.
    """

    image: Image
    t_mono_ns: int
    earliest_ns: int
    time_source: TimeSource
    seq: int | None = None
    pixel_format: str = "rgb8"


class Source(Protocol):
    """One connection to one camera, used by one thread.

    Attributes:
        never_silent: sends by itself, so `timeout_s` without an exposure is a failure.
        on_request: exposes only when `request` is called.
    """

    never_silent: bool
    on_request: bool

    def request(self) -> None:
        """Asks for one exposure.

        Raises:
            CameraError: not possible; the source is then closed.
        """

    def read(self, timeout_s: float) -> Exposure | None:
        """The next exposure; None after about `timeout_s` seconds without one.

        Raises:
            TornFrameError: a piece is missing; the next one may be whole.
            EndOfStreamError: there will be no more.
            CameraError: the connection is of no more use.
        """

    def close(self) -> None:
        """Lets go of the device. Called once."""


class Connect(Protocol):
    """How a reader gets its source."""

    def __call__(self) -> Source:
        """A new connection.

        Raises:
            CameraError: not there, or a setting is not possible.
        """


class Reader:
    """One thread: connects, reads until something fails, connects again, until told to stop."""

    def __init__(
        self,
        settings: CameraSettings,
        clock: Clock,
        connect: Connect,
        *,
        mailbox: Mailbox,
        first_seq: int,
        dice: random.Random,
    ) -> None:
        self.settings = settings
        self.seq = first_seq
        self.last_error: CameraError | None = None
        self.tried = threading.Event()  # the first attempt to connect is over
        self.connected = False
        self._clock = clock
        self._connect = connect
        self._mailbox = mailbox
        self._dice = dice
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._awaited = False  # connected, and each exposure counts
        self._called_ns: int | None = None  # a driver has not returned since
        self._seq_offset: int | None = None
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)

    def start(self) -> None:
        """Begins to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; does not wait."""
        self._stop.set()
        self._wanted.set()

    def join(self, timeout_s: float) -> bool:
        """False when the thread still runs after `timeout_s` seconds."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def request(self) -> None:
        """Wants one exposure; an earlier wish that was not served yet becomes this one."""
        self._wanted.set()

    def hangs(self, now_ns: int) -> bool:
        """A driver call has not returned for much longer than any should take."""
        limit_s = HANGS_AFTER_S + self.settings.timeout_s
        called_ns = self._called_ns
        return called_ns is not None and now_ns - called_ns > limit_s * 1e9

    def _run(self) -> None:
        delay_s = 0.0
        while not self._stop.wait(delay_s * self._dice.uniform(*JITTER)):
            was = self.seq
            try:
                self._read_once()
                error: CameraError | None = None
            except EndOfStreamError as end:
                if not self.settings.loop:
                    self._mailbox.end(end)
                    return
                delay_s = 0.0
                continue
            except CameraError as failed:
                error = failed
            except Exception as bug:  # of a driver or ours: seen, and survived like any failure
                log.exception("camera %s: the reading thread failed", self.settings.camera_id)
                error = CameraError(
                    f"camera {self.settings.camera_id} failed: {type(bug).__name__}", "see the log"
                )
            if error is not None:
                self._failed(error)
            # Back off only from a camera that gives nothing.
            grown_s = REOPEN_FIRST_S if self.seq > was else max(2 * delay_s, REOPEN_FIRST_S)
            delay_s = min(grown_s, REOPEN_LONGEST_S)

    def _failed(self, error: CameraError) -> None:
        again = self.last_error is not None and self.last_error.what == error.what
        (log.debug if again else log.warning)("%s", error)
        self.last_error = error
        if self._awaited:
            # Somebody may be waiting for this very exposure; no other one can stand in for it.
            self._mailbox.put(error, self._clock.mono_ns())
        self.connected = self._awaited = False
        self.tried.set()

    def _read_once(self) -> None:
        """From connecting to the failure that ends it, or to `stop`."""
        self._called_ns = self._clock.mono_ns()
        try:
            source = self._connect()
            try:
                if self._stop.is_set():
                    return
                self._seq_offset = None
                self._awaited = source.on_request or self.settings.mode is CameraMode.HARDWARE
                self.connected = True
                self.tried.set()
                self._read(source)
            finally:
                source.close()
        finally:
            self._called_ns = None

    def _read(self, source: Source) -> None:
        heard_ns = self._clock.mono_ns()
        waiting = source.never_silent
        limit_ns = round(max(self.settings.timeout_s, POLL_S) * 1e9)
        while not self._stop.is_set():
            self._called_ns = self._clock.mono_ns()
            if source.on_request and self._wanted.is_set():
                self._wanted.clear()
                source.request()
                waiting, heard_ns = True, self._clock.mono_ns()
            if self._receive(source, waiting):
                heard_ns = self._clock.mono_ns()
                waiting = source.never_silent
            elif waiting and self._clock.mono_ns() - heard_ns > limit_ns:
                raise CameraTimeoutError(
                    f"camera {self.settings.camera_id} is silent, it is opened anew",
                    "check cable, power, trigger and camera.timeout_s",
                )

    def _receive(self, source: Source, waiting: bool) -> bool:
        """Whether an exposure came, whole or torn."""
        # Idle, a camera on request only shows whether it lives: a request must not wait for that.
        poll_s = POLL_S if waiting or not source.on_request else 0.0
        try:
            exposure = source.read(poll_s)
        except TornFrameError as torn:
            torn.seq = self._next_seq(torn.seq)
            log.warning("%s", torn)
            self._mailbox.put(torn, self._clock.mono_ns())
            return True
        if exposure is None:
            if not waiting and source.on_request:
                self._called_ns = None
                self._wanted.wait(POLL_S)
            return False
        if self.last_error is not None:
            log.info("camera %s gives pictures again", self.settings.camera_id)
            self.last_error = None
        self._mailbox.put(self._frame(exposure), exposure.earliest_ns)
        return True

    def _frame(self, exposure: Exposure) -> Frame:
        seq = self._next_seq(exposure.seq)
        ago_ns = self._clock.mono_ns() - exposure.t_mono_ns
        return Frame(
            image=exposure.image,
            seq=seq,
            camera_id=self.settings.camera_id,
            frame_id=f"{self.settings.camera_id}-{seq}",
            t_mono_ns=exposure.t_mono_ns,
            t_utc_ns=self._clock.utc_ns() - ago_ns,
            time_source=exposure.time_source,
            pixel_format=exposure.pixel_format,
        )

    def _next_seq(self, camera_seq: int | None) -> int:
        """The camera's own counter, moved so that numbers only grow; with its gaps."""
        if camera_seq is None:
            camera_seq = self.seq + 1 - (self._seq_offset or 0)
        if self._seq_offset is None or camera_seq + self._seq_offset <= self.seq:
            began_anew = self.settings.mode is CameraMode.HARDWARE and self.seq > 0
            self._seq_offset = self.seq + (RESTART_GAP if began_anew else 1) - camera_seq
        self.seq = camera_seq + self._seq_offset
        return self.seq


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

    def connect(self) -> Source:
        """See `Connect`; called by the reading thread, again and again."""
        raise NotImplementedError

    def open(self) -> None:
        """See `Camera.open`: waits for the first connection, at most `OPEN_TIMEOUT_S`."""
        if self._reader is not None:
            return
        reader = self._reader = self._start(first_seq=0)
        tried = reader.tried.wait(OPEN_TIMEOUT_S + 0.5)  # a driver's own limit comes first
        if reader.connected:
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
        in_order = self._settings.mode is CameraMode.HARDWARE
        return Mailbox(self._settings.fifo if in_order else None)

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
            return
        log.error("camera %s: its driver hangs; a new thread takes over", self.name)
        reader.stop()
        self._left_behind.append(reader)
        self._mailbox = self._new_mailbox()  # the old thread cannot spoil what it cannot reach
        self._reader = self._start(first_seq=reader.seq)
