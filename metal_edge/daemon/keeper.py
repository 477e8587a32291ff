"""Keeps one line going in a thread of its own: arms it, runs it, and after a fault once more."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum, auto

from metal_edge.daemon.absence import announce_absence
from metal_edge.daemon.arming import Tools, arm
from metal_edge.daemon.changeover.changeover import Changeover
from metal_edge.daemon.pulse import Pulse
from metal_edge.daemon.scheduling import schedule_deciding_thread, use_cpus
from metal_edge.errors import MetalEdgeError
from metal_edge.settings import LineSettings

log = logging.getLogger(__name__)

BACK_OFF_FIRST_S = 1.0
BACK_OFF_LONGEST_S = 30.0
# A line that ran this long was well: its next fault is a first one.
WELL_NS = 60_000_000_000
SLICE_S = 0.1


class Phase(Enum):
    """What a keeper's thread is doing."""

    ARMING = auto()
    RUNNING = auto()
    CLOSING = auto()  # camera, broker, records; a driver may take its time
    WAITING = auto()  # after a fault, for the next try
    ENDED = auto()


def back_off_s(failures: int) -> float:
    """Seconds before the next try, after so many failures in a row (1, 2, ...)."""
    return float(min(BACK_OFF_FIRST_S * 2 ** min(failures - 1, 16), BACK_OFF_LONGEST_S))


class Keeper:
    """One line's thread.

    Args:
        name: of the line, for log and status.
        settings: asked at each try.
        tools: `notifier`, `phase` and `patient` are replaced by the keeper's own.
        pulse: the line is a member of it until it ends.
        news: set when the first try is over, and when the line ends.
        patient: tries again after a fault; otherwise the fault ends the line and is kept.
    """

    def __init__(
        self,
        name: str,
        settings: Callable[[], LineSettings],
        tools: Tools,
        pulse: Pulse,
        news: threading.Event,
        *,
        patient: bool,
    ) -> None:
        self.name = name
        self.phase = Phase.ARMING
        self.doing = ""  # while arming
        self.since_ns = tools.clock.mono_ns()  # when that began
        self.tried = False  # the first try is over, well or not
        self.fault: Exception | None = None
        self._changeover: Changeover | None = None
        self._announced = ""
        self._settings = settings
        self._known: LineSettings | None = None  # as last read
        self._pulse = pulse
        self._news = news
        self._signs = pulse.join(name)
        self._patient = patient
        self._tools = replace(tools, notifier=self._signs, phase=self._now_doing, patient=patient)
        # A thread that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._keep, name=f"line {name}", daemon=True)

    def start(self) -> None:
        """Begins in the thread."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """True when the thread has ended, waiting for at most `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def reload(self) -> None:
        """Takes new settings over; a line that does not run reads them at its next try."""
        changeover = self._changeover
        if changeover is not None:
            changeover.reload(self._settings)

    def _keep(self) -> None:
        failures = 0
        try:
            while not self._tools.stop.requested():
                began_ns = self._tools.clock.mono_ns()
                if self._try():
                    return
                if not self._patient:
                    return
                if self._tools.clock.mono_ns() - began_ns > WELL_NS:
                    failures = 0
                failures += 1
                self._wait(back_off_s(failures))
        finally:
            self.phase = Phase.ENDED
            self._pulse.leave(self.name)
            self._tell()

    def _try(self) -> bool:
        """One life of the line, from arming to its end. False when a fault ended it."""
        self.phase, self.since_ns = Phase.ARMING, self._tools.clock.mono_ns()
        try:
            with ExitStack() as cleanup:
                self._live(cleanup)
        except MetalEdgeError as error:
            if self._patient:
                log.error("line %s is offline: %s", self.name, error)
            self._failed(error)
            return False
        except Exception as error:  # whatever it is, the other lines go on
            if self._patient:
                log.exception("line %s failed", self.name)
            self._failed(error)
            return False
        return True

    def _live(self, cleanup: ExitStack) -> None:
        self._known = settings = self._settings()
        use_cpus(settings.runtime.cpus)
        armed = arm(settings, self._tools, cleanup)
        if armed is None:
            return
        schedule_deciding_thread(settings.runtime.realtime_priority)
        self.phase, self.fault, self._announced = Phase.RUNNING, None, ""
        identity = armed.line.serving.identity
        self._pulse.say(self.name, f"inspecting with {identity.model_id}")
        self._tell()
        log.info("line %s is armed", identity.topic_root)
        self._changeover = armed.changeover
        try:
            armed.line.run()
        finally:
            self._changeover = None
            self.doing, self.since_ns = "closing", self._tools.clock.mono_ns()
            self.phase = Phase.CLOSING

    def _failed(self, error: Exception) -> None:
        self.fault = error  # impatient: the box raises it
        if self._patient and self.phase is Phase.ARMING:
            self._announce(f"failed while {self.doing}")
        self._pulse.say(self.name, f"offline: {error}")
        if self._patient:  # otherwise the news is that the line has ended
            self._tell()

    def _announce(self, problem: str) -> None:
        """Once per problem: the state is retained."""
        if self._known is None or problem == self._announced:
            return
        self._announced = problem
        announce_absence(self._known, problem, self._tools.clock)

    def _tell(self) -> None:
        self.tried = True
        self._news.set()

    def _wait(self, seconds: float) -> None:
        self.phase = Phase.WAITING
        clock = self._tools.clock
        until_ns = clock.mono_ns() + round(seconds * 1e9)
        pause = threading.Event()
        while clock.mono_ns() < until_ns and not self._tools.stop.requested():
            pause.wait(SLICE_S)
            self._signs.watchdog()

    def _now_doing(self, what: str) -> None:
        self.doing, self.since_ns = what, self._tools.clock.mono_ns()
        self._pulse.say(self.name, what)
