"""Opens connections again and again, with bounded delays, until one works or nobody wants it."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable

from metal_edge.daemon.mqtt.connection import Connection
from metal_edge.errors import MetalEdgeError

log = logging.getLogger(__name__)

FIRST_S = 1.0
LONGEST_S = 5.0


def open_connection(
    make: Callable[[], Connection], stopping: threading.Event, spread: random.Random
) -> Connection | None:
    """A connection that is open; None when `stopping` is set.

    Delays grow from 1 to 5 s, less up to a quarter, so that a hall full of stations does not
    come back in step. The same failure is logged once.
    """
    delay_s, told = FIRST_S, ""
    while not stopping.wait(delay_s * spread.uniform(0.75, 1.0)):
        delay_s = min(2 * delay_s, LONGEST_S)
        try:
            connection = make()
            connection.open()
        except MetalEdgeError as error:
            if str(error) != told:
                log.warning("%s", error)
            told = str(error)
        except Exception:
            # A defect of ours or of paho's. Ending the thread would not make the next attempt
            # any better, and only this way does the traceback reach the log.
            log.exception("connecting to the broker failed")
        else:
            return connection
    return None


class Connector:
    """Does so in a thread of its own, one at a time, for a loop that must not wait."""

    def __init__(self, make: Callable[[], Connection]) -> None:
        self._make = make
        self._spread = random.Random()  # noqa: S311  (guards nothing)
        self._stopping = threading.Event()
        self._made: deque[Connection] = deque(maxlen=1)
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """True while it tries, or its connection has not been taken."""
        return bool(self._made) or (self._thread is not None and self._thread.is_alive())

    def start(self, dead: Connection | None) -> None:
        """Closes `dead` and begins to try. Not while `busy`, and not after `stop`."""
        self._thread = threading.Thread(
            target=self._run, args=(dead,), name="mqtt-connect", daemon=True
        )
        self._thread.start()

    def take(self) -> Connection | None:
        """The new connection, once."""
        return self._made.popleft() if self._made else None

    def stop(self) -> None:
        """No more attempts; one under way may still end with a connection."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        """True after `stop`."""
        return self._stopping.is_set()

    def _run(self, dead: Connection | None) -> None:
        if dead is not None:
            dead.close()
        connection = open_connection(self._make, self._stopping, self._spread)
        if connection is not None:
            self._made.append(connection)
