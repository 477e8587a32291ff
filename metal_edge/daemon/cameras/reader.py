"""The thread that reads one camera: connects, reads until something fails, connects again."""

from __future__ import annotations

import logging
import random
import threading

from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EndOfStreamError,
    TornFrameError,
)
from metal_edge.daemon.cameras.mailbox import Mailbox
from metal_edge.daemon.cameras.source import Connect, Exposure, Source
from metal_edge.daemon.clock import Clock
from metal_edge.domain import Frame
from metal_edge.settings import CameraMode, CameraSettings

log = logging.getLogger(__name__)

REOPEN_FIRST_S = 0.2
# With a failing attempt of its own (2.5 s for Aravis) still within the 5 s that a return may take.
REOPEN_LONGEST_S = 1.0
JITTER = (0.8, 1.2)  # cameras that lost the same switch do not come back in step
POLL_S = 0.1  # a source is asked for so long at a time, so that `close` is soon heard
# No driver call takes so long but one that hangs; its thread is given up.
HANGS_AFTER_S = 10.0
# `hardware`: nobody knows what was lost before a counter that began anew. A gap of more than
# `exposures.MAX_GAP` says so.
RESTART_GAP = 1000


class Reader:
    """One thread, from `start` to `stop`.

    Attributes:
        seq: of the last frame.
        last_error: why there are no frames; None while there are.
        tried: set when the first attempt to connect is over.
        opened: some attempt to connect was a success, whatever came later.
        connected: there is a source now, as far as anybody knows.
    """

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
        self.tried = threading.Event()
        self.opened = False
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
            ended = False
            try:
                self._read_once()
            except EndOfStreamError as end:
                if not self.settings.loop:
                    self._mailbox.end(end)
                    return
                ended = True
            except CameraError as error:
                self._failed(error)
            except Exception as bug:  # of a driver or ours: seen, and survived like any failure
                log.exception("camera %s: the reading thread failed", self.settings.camera_id)
                self._failed(
                    CameraError(
                        f"camera {self.settings.camera_id} failed: {type(bug).__name__}",
                        "see the log",
                    )
                )
            if self.seq > was:  # back off only from a camera that gives nothing
                delay_s = 0.0 if ended else REOPEN_FIRST_S
            else:
                delay_s = min(max(2 * delay_s, REOPEN_FIRST_S), REOPEN_LONGEST_S)

    def _failed(self, error: CameraError) -> None:
        again = self.last_error is not None and self.last_error.what == error.what
        (log.debug if again else log.warning)("%s", error)
        self.last_error = _without_frames(error)
        if self._awaited:
            # Somebody may be waiting for this very exposure; no other one can stand in for it.
            self._mailbox.put(error, self._clock.mono_ns())
        self._awaited = self.connected = False
        self.tried.set()

    def _read_once(self) -> None:
        """From connecting to the failure that ends it, or to `stop`."""
        self._called_ns = self._clock.mono_ns()
        try:
            source = self._connect()
            try:
                if not self._stop.is_set():
                    self._use(source)
            finally:
                source.close()
        finally:
            self._called_ns = None

    def _use(self, source: Source) -> None:
        self._seq_offset = None
        self._awaited = source.on_request or self.settings.mode is CameraMode.HARDWARE
        self.opened = self.connected = True
        self.tried.set()
        try:
            self._read(source)
        except EndOfStreamError:
            raise
        except CameraError as error:
            self._failed(error)  # told before the driver is closed, which may take seconds

    def _read(self, source: Source) -> None:
        heard_ns = self._clock.mono_ns()
        waiting = source.never_silent
        limit_ns = round(max(self.settings.timeout_s, POLL_S) * 1e9)
        while not self._stop.is_set():
            self._called_ns = self._clock.mono_ns()
            # One at a time: frames come without the name of the request that they answer.
            if source.on_request and not waiting and self._wanted.is_set():
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
            self._mailbox.put(_without_frames(torn), self._clock.mono_ns())
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


def _without_frames(error: CameraError) -> CameraError:
    """An error to keep: its traceback would hold on to the driver's objects, and so the device."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
