"""The daemon's clocks, passed in so that tests can move time by hand, and how good UTC is."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
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


# Far above what slewing (500 ppm) or a busy machine moves between two looks.
STEP_NS = 500_000_000


class StepWatch:
    """Notices that the wall clock was set, by comparing it with the monotonic one."""

    def __init__(self) -> None:
        self._ahead_ns: int | None = None

    def look(self, mono_ns: int, utc_ns: int) -> int | None:
        """By how much UTC has stepped since the last look; None when it has not."""
        ahead_ns = utc_ns - mono_ns
        before_ns, self._ahead_ns = self._ahead_ns, ahead_ns
        if before_ns is None or abs(ahead_ns - before_ns) < STEP_NS:
            return None
        return ahead_ns - before_ns


@dataclass(frozen=True, slots=True)
class ClockState:
    """How far the wall clock can be trusted; None where the kernel would not say."""

    synced: bool | None
    offset_us: float | None


class _Timex(ctypes.Structure):
    """The head of the kernel's `struct timex`, see adjtimex(2); the rest is padding."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


_STA_UNSYNC = 0x0040
_STA_NANO = 0x2000


def read_clock_state() -> ClockState:
    """Asks the kernel's clock discipline, which chrony, timesyncd and phc2sys all steer."""
    timex = _Timex(modes=0)  # 0: read only, needs no privilege
    adjtimex = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)
    if adjtimex is None or adjtimex(ctypes.byref(timex)) < 0:
        return ClockState(None, None)
    offset = timex.offset / 1000 if timex.status & _STA_NANO else float(timex.offset)
    return ClockState(not timex.status & _STA_UNSYNC, offset)
