"""One process for one line or several: each in a thread, none stopped by another's faults."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from metal_edge.daemon.arming import Tools
from metal_edge.daemon.keeper import Keeper, Phase
from metal_edge.daemon.pulse import Pulse
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.errors import ExitCode
from metal_edge.settings import LineSettings

log = logging.getLogger(__name__)

TICK_S = 0.1
# Building an engine takes minutes on a Jetson. Anything else must be done in the unit's time.
LOADING = "loading"
LOADING_LIMIT_NS = 1_800_000_000_000
ARMING_LIMIT_NS = 60_000_000_000
EXTENSION_S = 10.0
# From the request to stop; a part in hand needs half a second, the goodbye less than one.
STOP_LIMIT_NS = 4_000_000_000
ARMING_STOP_LIMIT_NS = 1_000_000_000


class ReloadFlag:
    """Set by a signal handler, taken by the box."""

    def __init__(self) -> None:
        self._requested = False

    def request(self, signum: int = 0, frame: object = None) -> None:
        """Usable as a signal handler."""
        del signum, frame
        self._requested = True

    def taken(self) -> bool:
        """True once per request; several at once count as one."""
        requested, self._requested = self._requested, False
        return requested


class Box:
    """Starts the lines, watches over them, ends them.

    Args:
        lines: by name: gives a line's settings, each time that it is armed.
        tools: what all lines share.
        notifier: to the service manager.
        reload: asks all lines to read their settings again.
        patient: a line that fails is tried again. Otherwise its error ends the box.
    """

    def __init__(
        self,
        lines: Mapping[str, Callable[[], LineSettings]],
        tools: Tools,
        notifier: Notifier,
        reload: ReloadFlag,
        *,
        patient: bool,
    ) -> None:
        self._stop = tools.stop
        self._clock = tools.clock
        self._notifier = notifier
        self._reload = reload
        self._pulse = Pulse(notifier)
        self._news = threading.Event()
        self._ready = False
        self._extended_ns = 0
        self._keepers = [
            Keeper(name, settings, tools, self._pulse, self._news, patient=patient)
            for name, settings in lines.items()
        ]

    def run(self) -> ExitCode:
        """Returns when all lines have ended: told to stop, or at the end of their pictures.

        Raises:
            MetalEdgeError: of an impatient line.
        """
        for keeper in self._keepers:
            keeper.start()
        while self._alive() and not self._stop.requested():
            self._watch()
            if self._reload.taken():
                for keeper in self._keepers:
                    keeper.reload()
            # A signal handler may not set an event, so the stop flag is looked at in between.
            self._news.wait(TICK_S)
            self._news.clear()
        self._notifier.stopping()
        log.info("stopping")
        return self._end()

    def _alive(self) -> list[Keeper]:
        return [keeper for keeper in self._keepers if keeper.phase is not Phase.ENDED]

    def _watch(self) -> None:
        """Vouches for lines that come or go, within bounds, and says READY once."""
        now_ns = self._clock.mono_ns()
        for keeper in self._alive():
            if keeper.phase in {Phase.ARMING, Phase.CLOSING}:
                loading = keeper.doing.startswith(LOADING)
                limit_ns = LOADING_LIMIT_NS if loading else ARMING_LIMIT_NS
                if now_ns - keeper.since_ns < limit_ns:
                    self._vouch(keeper, loading, now_ns)
        if not self._ready and all(k.tried for k in self._keepers) and self._alive():
            self._ready = True
            self._notifier.ready(self._pulse.status())

    def _vouch(self, keeper: Keeper, loading: bool, now_ns: int) -> None:
        """Before READY by asking for more time while an engine is built, afterwards by a sign."""
        if self._ready:
            self._pulse.sign(keeper.name)
        elif loading and now_ns - self._extended_ns > EXTENSION_S / 2 * 1e9:
            self._extended_ns = now_ns
            self._notifier.extend(EXTENSION_S)

    def _end(self) -> ExitCode:
        begun_ns = self._clock.mono_ns()
        for keeper in self._keepers:
            # Who builds an engine cannot be interrupted, and has no part in hand.
            arming = keeper.phase is Phase.ARMING
            end_ns = begun_ns + (ARMING_STOP_LIMIT_NS if arming else STOP_LIMIT_NS)
            ended = keeper.join(max(0.0, (end_ns - self._clock.mono_ns()) / 1e9))
            if not ended and arming:
                log.info("line %s is left while %s", keeper.name, keeper.doing)
            elif not ended:
                log.critical("line %s does not end (%s)", keeper.name, keeper.doing)
                return ExitCode.SOFTWARE
        faults = [k.fault for k in self._keepers if k.fault is not None]
        if faults and not self._stop.requested():
            raise faults[0]
        return ExitCode.OK
