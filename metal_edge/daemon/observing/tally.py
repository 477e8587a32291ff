"""What one line has said, added up for whoever asks. Pure, but for the lock.

It hears copies of what the publisher says and counts nothing that a heartbeat counts already: of
decisions only what no heartbeat has, reasons and latencies.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.mqtt.topics import DECISION, HEARTBEAT

# Seconds: from a hand-over (a tenth of a millisecond) to the longest usual deadline.
BOUNDS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0),
)
# `total`: from exposure to publication, where there was a frame.
STAGES = ("grab", "infer", "post", "total")
# A line that has not said anything for so many heartbeats is not healthy, whatever it said last.
MISSED_BEATS = 3


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, the last for what is above all bounds; and the sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """One value; a bound belongs to the bucket below it."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def copy(self) -> Histogram:
        """For a reader in another thread."""
        return Histogram(list(self.counts), self.sum_s)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A line at one moment.

    Attributes:
        decisions: by verdict and reason.
        latency: by stage.
        beat: the last heartbeat's payload; None before the first.
        beat_age_s: since then.
        healthy: as that says, unless it is old or the line has ended.
        state: `offline` once the line has ended.
        model: payload of the topic; None before it was said.
    """

    decisions: Mapping[tuple[str, str], int]
    latency: Mapping[str, Histogram]
    beat: Mapping[str, Any] | None
    beat_age_s: float | None
    healthy: bool
    state: str
    model: Mapping[str, Any] | None


class Tally:
    """One life of a line, from arming to its end.

    Args:
        clock: ages run on its monotonic side.
        heartbeat_hz: of the line.
    """

    def __init__(self, clock: Clock, heartbeat_hz: float) -> None:
        self._clock = clock
        self._patience_s = MISSED_BEATS / heartbeat_hz
        self._lock = threading.Lock()
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._latency = {stage: Histogram() for stage in STAGES}
        self._beat: dict[str, Any] | None = None
        self._beat_ns = 0
        self._model: dict[str, Any] | None = None
        self._over = False

    def hear(self, name: str, payload: dict[str, Any]) -> None:
        """A copy of what is published; returns in microseconds. See publisher.Copy."""
        with self._lock:
            if name == DECISION.name:
                self._decided(payload)
            elif name == HEARTBEAT.name:
                self._beat, self._beat_ns = payload, self._clock.mono_ns()
            elif name == "model":
                self._model = payload

    def end(self) -> None:
        """The line is no more, or is about to be armed anew: never healthy again."""
        with self._lock:
            self._over = True

    def snapshot(self) -> Snapshot:
        """How it is now."""
        with self._lock:
            beat = self._beat
            age_s = None if beat is None else (self._clock.mono_ns() - self._beat_ns) / 1e9
            alive = not self._over and age_s is not None and age_s <= self._patience_s
            return Snapshot(
                decisions=dict(self._decisions),
                latency={stage: found.copy() for stage, found in self._latency.items()},
                beat=beat,
                beat_age_s=age_s,
                healthy=alive and beat is not None and bool(beat["healthy"]),
                state="offline" if self._over else "starting" if beat is None else beat["state"],
                model=self._model,
            )

    def _decided(self, payload: dict[str, Any]) -> None:
        self._decisions[payload["verdict"], payload["reason"]] += 1
        for stage, spent_ms in payload["latency_ms"].items():
            if spent_ms is not None and stage in self._latency:
                self._latency[stage].add(spent_ms / 1e3)
        exposed_ns = payload["t_exposure_ns"]
        if exposed_ns is not None:
            total_s = (payload["t_publish_ns"] - exposed_ns) / 1e9
            if total_s >= 0:  # not so when the wall clock was set back in between
                self._latency["total"].add(total_s)
