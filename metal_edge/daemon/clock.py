"""The daemon's clocks, passed in so that tests can move time by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: budgets run on the monotonic one, records carry UTC."""

    def mono_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds; never steps."""

    def utc_ns(self) -> int:
        """UTC since the epoch in nanoseconds; may step when the machine is synchronised."""


class SystemClock:
    """The machine's own clocks."""

    def mono_ns(self) -> int:
        """See `Clock.mono_ns`."""
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        """See `Clock.utc_ns`."""
        return time.time_ns()
