"""One thread per camera: a camera that stalls holds up itself, not the line.

The deciding thread asks for one frame at a time and is rung when it is there. Everything that a
camera can do wrong ends in an Outcome; a camera whose call never returns gives none, and the
deciding thread stops waiting by its own clock.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from metal_edge.daemon.cameras import Camera, CameraError, CameraTimeoutError, LateRequestError
from metal_edge.daemon.clock import Clock
from metal_edge.daemon.line.bell import Bell
from metal_edge.domain import Frame

log = logging.getLogger(__name__)

# A grab waits this long at a time; in between the thread sees that its frame is not wanted any
# more. A frame that arrives ends the wait at once.
SLICE_S = 0.1
# After so long a thread that is still inside the camera is left behind.
CLOSE_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True)
class Shot:
    """One frame that is asked for.

    Attributes:
        number: running; an outcome of another number is too late for anything.
        part_id: told to the camera.
        timeout_s: for the whole of it.
        trigger: whether the camera is told to expose first.
        expose_by_ns: not later than this, if it is told.
    """

    number: int
    part_id: str | None
    timeout_s: float
    trigger: bool
    expose_by_ns: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of a shot: a frame, or the error instead of it; and when it was there."""

    number: int
    frame: Frame | None
    error: Exception | None
    t_mono_ns: int


class Grabber:
    """The thread that uses one camera, from `start` to `close`.

    Args:
        camera: opened and closed by whoever made it.
        name: of the camera, for logs.
        clock: times out the grab.
        bell: rung for each outcome.
    """

    def __init__(self, camera: Camera, name: str, clock: Clock, bell: Bell) -> None:
        self._camera = camera
        self._name = name
        self._clock = clock
        self._bell = bell
        self._changed = threading.Condition()
        self._pending: Shot | None = None
        self._wanted = 0
        self._outcome: Outcome | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"grab-{name}", daemon=True)

    def start(self) -> None:
        """Begins to take shots."""
        self._thread.start()

    def ask(self, shot: Shot) -> None:
        """Asks for a frame, and gives up any earlier one."""
        with self._changed:
            self._pending, self._wanted, self._outcome = shot, shot.number, None
            self._changed.notify()

    def take(self) -> Outcome | None:
        """The outcome of the last shot asked for, once; None while there is none."""
        with self._changed:
            outcome, self._outcome = self._outcome, None
            return outcome

    def close(self) -> None:
        """Ends the thread; one that is stuck in the camera is left behind and said so."""
        with self._changed:
            self._closed = True
            self._wanted = 0
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.warning("camera %s does not return from a grab; left behind", self._name)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closed)
                shot, self._pending = self._pending, None
                if self._closed or shot is None:
                    return
            outcome = self._take_shot(shot)
            with self._changed:
                if outcome is None or self._wanted != shot.number:
                    continue
                self._outcome = outcome
            self._bell.ring()

    def _take_shot(self, shot: Shot) -> Outcome | None:
        """Whatever the camera does becomes an outcome; None when nobody wants one any more."""
        try:
            frame = self._expose(shot)
        except CameraError as error:
            return Outcome(shot.number, None, error, self._clock.mono_ns())
        except Exception as error:  # a camera is somebody else's code; its part gets its verdict
            log.exception("camera %s failed", self._name)
            return Outcome(shot.number, None, error, self._clock.mono_ns())
        if frame is None:
            return None
        return Outcome(shot.number, frame, None, self._clock.mono_ns())

    def _expose(self, shot: Shot) -> Frame | None:
        now_ns = self._clock.mono_ns()
        end_ns = now_ns + round(shot.timeout_s * 1e9)
        if shot.trigger:
            # Looked at here once more: this thread may have been in the camera until now.
            if shot.expose_by_ns is not None and now_ns > shot.expose_by_ns:
                raise LateRequestError("the camera was busy until the part had gone")
            self._camera.trigger(shot.part_id)
        while True:
            began_ns = self._clock.mono_ns()
            slice_s = min(SLICE_S, max(0.0, (end_ns - began_ns) / 1e9))
            try:
                return self._camera.grab(slice_s)
            except CameraTimeoutError:
                now_ns = self._clock.mono_ns()
                # A camera that gives up early will not do better if asked again.
                gave_up = now_ns - began_ns < slice_s * 1e9 / 2
                if gave_up or now_ns >= end_ns:
                    raise
            if self._wanted != shot.number:
                return None
