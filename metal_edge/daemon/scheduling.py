"""CPUs and real-time priority of the calling thread, as Linux gives them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence

from metal_edge.errors import SettingsError

log = logging.getLogger(__name__)

NICE = 10


def use_cpus(cpus: Sequence[int]) -> None:
    """Pins this thread, and every thread that it starts from now on.

    Raises:
        SettingsError: a CPU that this machine, or this service, does not have.
    """
    if not cpus:
        return
    try:
        os.sched_setaffinity(0, cpus)
    except (OSError, ValueError, OverflowError) as error:
        have = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise SettingsError(
            f"runtime.cpus {list(cpus)} cannot be used ({error})", f"this process may use {have}"
        ) from error


def schedule_deciding_thread(priority: int) -> None:
    """SCHED_FIFO for this thread alone; not being allowed to is noted, and no reason to stop."""
    if priority == 0:
        return
    # Camera and broker threads that it starts must not compete with it at the same priority.
    policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError as error:
        log.warning(
            "runtime.realtime_priority = %d is not permitted (%s); the line runs without."
            " docs/lifecycle.md says what the unit needs",
            priority,
            error,
        )
    else:
        log.info("thread %s runs at SCHED_FIFO %d", threading.current_thread().name, priority)


def step_back() -> None:
    """This thread yields to all others: for work that a line must not feel."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    except OSError as error:
        log.info("thread %s keeps its priority (%s)", threading.current_thread().name, error)
