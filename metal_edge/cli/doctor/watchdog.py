"""Whether the watchdog leaves the models their time: nothing is fed to it during an inference."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np

from metal_edge.cli.doctor.finding import Finding, Level
from metal_edge.daemon.line.model import Model
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.settings import LineSettings

SHIPPED_S = 2.0  # WatchdogSec= of systemd/metal-edge@.service
RUNS = 3
MOST_TOLD = 100


def slowest_inference_s(models: Iterable[Model]) -> float:
    """Of some runs of each model, one at a time, as this machine is loaded now."""
    longest = 0.0
    for model in models:
        blank = np.zeros((1, *model.runner.input_shape), dtype=np.uint8)
        for _ in range(RUNS):
            began = time.perf_counter()
            model.runner.run(blank)
            longest = max(longest, time.perf_counter() - began)
    return longest


def check_watchdog(
    settings: LineSettings, inference_s: float, environment: Mapping[str, str], pid: int
) -> Finding:
    """Lines that share an engine wait for each other, and each feeds the watchdog at its beats.

    Args:
        settings: of the line.
        inference_s: of its slowest model.
        environment: WATCHDOG_USEC, where a service manager watches; else the shipped unit's.
        pid: of this process, for which that must be meant.
    """
    given_s = Notifier(environment, pid).watchdog_period_s
    watchdog_s = SHIPPED_S if given_s is None else given_s
    whose = "the shipped unit" if given_s is None else "WATCHDOG_USEC"
    beat_s = 1 / settings.heartbeat_hz
    room = (watchdog_s - beat_s) / max(inference_s, 1e-6)
    found = (
        f"one inference takes {1e3 * inference_s:.3g} ms, a heartbeat comes every"
        f" {1e3 * beat_s:.3g} ms, the watchdog ({whose}) bites after {watchdog_s:g} s:"
    )
    if room < 1:
        longer_s = 2 * (inference_s + beat_s)
        return Finding(
            Level.WARN,
            "watchdog",
            f"{found} it would restart a line that works",
            f"WatchdogSec={longer_s:.0f} or more in the unit, more yet for lines that share the"
            " engine; or a smaller model",
        )
    lines = str(int(room)) if room < MOST_TOLD else f"more than {MOST_TOLD}"
    return Finding(Level.OK, "watchdog", f"{found} enough for {lines} lines with this engine")
