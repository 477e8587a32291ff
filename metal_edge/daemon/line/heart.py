"""Heartbeat, state and watchdog: sent by the deciding thread and by nobody else.

So they stop when it stops.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from metal_edge.daemon.clock import Clock, StepWatch, read_clock_state
from metal_edge.daemon.deciding.transitions import Event, State
from metal_edge.daemon.line.reporter import Reporter
from metal_edge.daemon.line.state import LineState
from metal_edge.daemon.line.triggers import TriggerQueue
from metal_edge.daemon.mqtt.messages import SCHEMA, Identity, iso_utc, state_payload
from metal_edge.daemon.mqtt.publisher import BrokerHealth, Publisher
from metal_edge.daemon.sdnotify import Notifier

log = logging.getLogger(__name__)

# A trigger this far past its deadline, still waiting: the loop turns, but decides nothing.
NO_PROGRESS_NS = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Vitals:
    """How the deciding itself is doing.

    Attributes:
        faults: what keeps the line from inspecting, in a word each.
        last_frame_ns: when a camera last gave one; of several, the one silent for longest.
        frames_dropped: in free run, frames that nobody had time for.
        triggers_lost: exposures of a wired trigger that gave no frame.
        notes: what is wrong, but does not keep it from inspecting.
    """

    faults: tuple[str, ...]
    last_frame_ns: int | None
    frames_dropped: int
    triggers_lost: int
    notes: tuple[str, ...] = ()


class Heart:
    """Beats when asked to, as often as the settings say.

    Args:
        hz: beats per second.
        vitals: asked at each beat.
        state: told at each beat how things stand.
        identity: asked at each beat who answers.
    """

    def __init__(
        self,
        hz: float,
        vitals: Callable[[], Vitals],
        state: LineState,
        identity: Callable[[], Identity],
        *,
        publisher: Publisher,
        reporter: Reporter,
        queue: TriggerQueue,
        notifier: Notifier,
        clock: Clock,
    ) -> None:
        self.period_ns = round(1e9 / hz)
        self._vitals = vitals
        self._state = state
        self._identity = identity
        self._publisher = publisher
        self._reporter = reporter
        self._queue = queue
        self._notifier = notifier
        self._clock = clock
        self._next_ns = 0
        self._beats = count(1)
        self._steps = StepWatch()
        self._told: tuple[State, tuple[str, ...]] = (State.ARMED, ())

    @property
    def due_ns(self) -> int:
        """When the next beat is due."""
        return self._next_ns

    def hurry(self) -> None:
        """The next beat is due now: the PLC must not wait to hear of a change."""
        self._next_ns = 0

    def beat(self) -> None:
        """Broker, state, heartbeat, watchdog; does nothing until the next beat is due."""
        now_ns = self._clock.mono_ns()
        if now_ns < self._next_ns:
            return
        # A little late keeps the pace; much too late, or hurried, begins it anew without a burst.
        on_time = now_ns - self._next_ns < self.period_ns
        self._next_ns = (self._next_ns if on_time else now_ns) + self.period_ns
        self._tell_of_steps(now_ns)
        self._reporter.clock_state = read_clock_state()
        health, vitals = self._publisher.health(), self._vitals()
        problems = self._observe(health, vitals)
        self._publisher.heartbeat(self._heartbeat(health, vitals, problems, now_ns))
        waiting_ns = self._queue.oldest_deadline_ns()
        if waiting_ns is None or now_ns - waiting_ns < NO_PROGRESS_NS:
            self._notifier.watchdog()

    def _tell_of_steps(self, now_ns: int) -> None:
        """Nothing depends on it, but who compares times in messages must know."""
        step_ns = self._steps.look(now_ns, self._clock.utc_ns())
        if step_ns is not None:
            log.warning(
                "the wall clock stepped by %+.1f s: times in messages jump, no budget uses it",
                step_ns / 1e9,
            )

    def _observe(self, health: BrokerHealth, vitals: Vitals) -> tuple[str, ...]:
        """Tells the state how things stand, and the world when that changes."""
        pictures = self._reporter.pictures().problem
        evidence = () if pictures is None else (f"evidence: {pictures}",)
        problems = (*health.problems, *evidence, *vitals.notes, *vitals.faults)
        event = Event.FAULT if vitals.faults else Event.PROBLEM if problems else Event.WELL
        state = self._state.tell(event)
        if state is State.DISARMED:
            because = self._state.disarmed_because
            problems = (*problems, f"disarmed: {because}" if because else "disarmed")
        elif not problems and not self._state.healthy:
            problems = (state.value,)
        if (state, problems) != self._told:
            self._told = state, problems
            self._tell(problems)
        return problems

    def _tell(self, problems: tuple[str, ...]) -> None:
        status = "degraded" if problems else "online"
        text = f"{status}: {', '.join(problems)}" if problems else status
        (log.warning if problems else log.info)("the line is %s", text)
        self._notifier.status(text)
        state = state_payload(status, self._identity(), self._clock.utc_ns(), problems)
        self._publisher.retain("state", state)

    def _heartbeat(
        self, health: BrokerHealth, vitals: Vitals, problems: tuple[str, ...], now_ns: int
    ) -> dict[str, Any]:
        last, utc_ns = vitals.last_frame_ns, self._clock.utc_ns()
        return {
            "schema": SCHEMA,
            "session_id": self._identity().session_id,
            "seq": next(self._beats),
            "t_publish": iso_utc(utc_ns),
            "t_publish_ns": utc_ns,
            "healthy": self._state.healthy,
            "state": self._state.now.value,
            "problems": list(problems),
            "last_frame_age_ms": None if last is None else (now_ns - last) / 1e6,
            "last_decision_seq": self._reporter.last_seq,
            "puback_age_ms": health.puback_age_ms,
            "echo_age_ms": health.echo_age_ms,
            "outbox_depth": health.events_waiting,
            "events_dropped": health.events_dropped,
            "decisions_dropped": health.decisions_dropped,
            "evidence_left_out": self._reporter.pictures().left_out,
            "queue_depth": len(self._queue),
            "frames_dropped": vitals.frames_dropped,
            "triggers_lost": vitals.triggers_lost,
            "decisions": self._reporter.counts(),
            "clock_synced": self._reporter.clock_state.synced,
        }
