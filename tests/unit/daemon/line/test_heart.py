"""The watchdog is fed by the heart, and only while the line gets on with its parts."""

from __future__ import annotations

from typing import cast

import pytest
from support.line_rig import Rig, SilentBroker

from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.line.bell import Bell
from metal_edge.daemon.line.heart import NO_PROGRESS_NS, Heart, Vitals
from metal_edge.daemon.line.state import LineState
from metal_edge.daemon.line.triggers import TriggerQueue
from metal_edge.daemon.mqtt.publisher import Publisher
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.domain import Trigger

S = 1_000_000_000


class HandClock(SystemClock):
    """Its monotonic side is moved by the test."""

    def __init__(self) -> None:
        self.now_ns = 100 * S

    def mono_ns(self) -> int:
        return self.now_ns


class Fed(Notifier):
    """Counts the watchdog's meals."""

    def __init__(self) -> None:
        super().__init__({})
        self.times = 0

    def watchdog(self) -> None:
        self.times += 1


class Bench:
    """A heart of five beats a second, beating by hand."""

    def __init__(self) -> None:
        self.clock, self.fed = HandClock(), Fed()
        self.broker = SilentBroker()
        self.queue = TriggerQueue(8, Bell())
        rig = Rig(clock=self.clock)  # for what a heart wants to know; its line never runs
        self.heart = Heart(
            5.0,
            lambda: Vitals((), None, 0, 0),
            LineState(),
            lambda: rig.models["cam0"].identity,
            publisher=cast(Publisher, self.broker),
            reporter=rig.parts.reporter,
            queue=self.queue,
            notifier=self.fed,
            clock=self.clock,
        )

    def beats(self, seconds: float) -> tuple[int, int]:
        """Heartbeats and meals in that time, looked at every millisecond."""
        beats, times = len(self.broker.beats), self.fed.times
        for _ in range(round(seconds * 1000)):
            self.clock.now_ns += 1_000_000
            self.heart.beat()
        return len(self.broker.beats) - beats, self.fed.times - times

    def wait(self, deadline_in_s: float) -> None:
        """A trigger joins the queue, and nobody takes it."""
        now_ns = self.clock.now_ns
        self.queue.offer(Trigger("t", "p", now_ns, now_ns + round(deadline_in_s * S)))


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.heart.beat()
    return made


def test_each_beat_feeds_the_watchdog(bench: Bench) -> None:
    assert bench.beats(2) == (10, 10)


def test_a_trigger_that_nobody_takes_starves_it(bench: Bench) -> None:
    """The loop turns and the heart beats, but nothing is decided."""
    bench.wait(deadline_in_s=1)
    patience_s = 1 + NO_PROGRESS_NS / S
    assert bench.beats(patience_s - 0.2) == (54, 54)
    bench.beats(0.4)
    assert bench.beats(2) == (10, 0)
    assert bench.queue.take() is not None
    assert bench.beats(2) == (10, 10)


def test_a_trigger_with_a_long_deadline_may_wait_for_it(bench: Bench) -> None:
    bench.wait(deadline_in_s=60)
    assert bench.beats(30) == (150, 150)


def test_a_pause_is_not_made_up_for_by_a_burst(bench: Bench) -> None:
    """Beats of the past would look like a line that lives; one is enough, and the pace is kept."""
    bench.clock.now_ns += 7 * S
    bench.heart.beat()
    bench.heart.beat()
    assert len(bench.broker.beats) == 2
    assert bench.beats(1) == (5, 5)
