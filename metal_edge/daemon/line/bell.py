"""How other threads wake the deciding thread."""

from __future__ import annotations

import threading


class Bell:
    """Rung by anybody, waited for by one thread. A ring before the wait is not lost.

    The waiting thread looks at what it waits for after every wait, so one ring for two events,
    or one ring too many, does no harm.
    """

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        """Ends the wait under way, or the next one."""
        self._rung.set()

    def wait(self, timeout_s: float) -> None:
        """Returns when rung, or after `timeout_s` seconds."""
        self._rung.wait(max(0.0, timeout_s))
        # Cleared before the caller looks around: what happens after that rings again.
        self._rung.clear()
