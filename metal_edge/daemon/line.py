"""The deciding loop: one thread that waits, looks, decides, and shows that it lives.

Heartbeat and watchdog are sent from here and from nowhere else, so they stop when it stops.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from metal_edge.bundle import Bundle
from metal_edge.daemon.cameras import Camera, CameraError, CameraTimeoutError, EndOfStreamError
from metal_edge.daemon.clock import Clock, read_clock_state
from metal_edge.daemon.decision import (
    Evidence,
    Reason,
    Rules,
    assess,
    decide,
    frame_fault,
)
from metal_edge.daemon.messages import SCHEMA, Identity, iso_utc, state_payload
from metal_edge.daemon.publisher import BrokerHealth, Publisher
from metal_edge.daemon.reporter import Reporter
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.daemon.triggers import TriggerQueue
from metal_edge.domain import Frame, Inspection, Trigger
from metal_edge.errors import MetalEdgeError
from metal_edge.imaging import prepare
from metal_edge.runtime.base import Runner
from metal_edge.settings import CameraMode, LineSettings

log = logging.getLogger(__name__)

# The loop looks at the stop flag this often, whatever it waits for.
SLICE_S = 0.1
# After a stop, the part in hand gets this long to come before the camera.
GRACE_NS = 500_000_000
# So many failures in a row are no longer bad luck.
FAILURES_TO_DEGRADE = 3
# A trigger this far past its deadline, still waiting: the loop turns, but decides nothing.
NO_PROGRESS_NS = 10_000_000_000


class StopFlag:
    """Set by a signal handler, read by the loop; nothing that a handler could deadlock on."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        """True once the daemon was asked to stop."""
        return self._requested

    def request(self, signum: int = 0, frame: object = None) -> None:
        """Usable as a signal handler."""
        del signum, frame
        self._requested = True


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop works with, all of it ready to use."""

    settings: LineSettings
    bundle: Bundle
    runner: Runner
    camera: Camera
    publisher: Publisher
    reporter: Reporter
    queue: TriggerQueue
    rules: Rules
    identity: Identity
    notifier: Notifier
    clock: Clock
    stop: StopFlag


class Line:
    """One inspection line, from `run` until its stop flag is set or its pictures end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._camera_settings = parts.settings.camera
        self._beat_ns = round(1e9 / parts.settings.heartbeat_hz)
        self._next_beat_ns = 0
        self._beats = count(1)
        self._last_frame_ns: int | None = None
        self._camera_failures = 0
        self._inference_failures = 0
        self._problems: tuple[str, ...] = ()
        self._stop_seen_ns: int | None = None

    def run(self) -> None:
        """Inspects until told to stop. What goes wrong with one part ends as its verdict."""
        if self._camera_settings.mode is CameraMode.TRIGGERED:
            while not self._parts.stop.requested():
                self._breathe()
                trigger = self._parts.queue.take(SLICE_S)
                if trigger is not None:
                    self._inspect(trigger)
        else:
            self._run_free()
        for trigger in self._parts.queue.close():
            self._report(trigger, Evidence(fault=Reason.SHUTTING_DOWN))

    def _run_free(self) -> None:
        """Newest frame wins. A frame, or a silence of `timeout_s`, is an event of its own."""
        number = 0
        while not self._parts.stop.requested():
            self._breathe()
            number += 1
            asked_ns = self._clock.mono_ns()
            try:
                evidence = self._see(self._camera_settings.timeout_s, asked_ns)
            except EndOfStreamError as error:
                log.info("%s; stopping", error.what)
                return
            if evidence.fault is Reason.SHUTTING_DOWN:
                return
            start_ns = asked_ns if evidence.frame is None else evidence.frame.t_mono_ns
            evidence = self._examine(evidence)
            deadline_ns = start_ns + self._deadline_ns()
            self._report(Trigger(f"free-{number}", None, start_ns, deadline_ns), evidence)
            if evidence.frame is None:
                self._rest()

    def _inspect(self, trigger: Trigger) -> None:
        """Exactly one verdict on one trigger."""
        now_ns = self._clock.mono_ns()
        left_s = (trigger.deadline_mono_ns - now_ns) / 1e9
        if left_s <= 0:
            self._report(trigger, Evidence(fault=Reason.DEADLINE_MISSED))
            return
        evidence = self._ask(trigger, min(left_s, self._camera_settings.timeout_s), now_ns)
        self._report(trigger, self._examine(evidence))

    def _ask(self, trigger: Trigger, timeout_s: float, now_ns: int) -> Evidence:
        try:
            self._parts.camera.trigger(trigger.part_id)
        except CameraError as error:
            return self._camera_failed(error, now_ns)
        except Exception as error:
            log.exception("the camera's trigger failed")
            return self._camera_failed(error, now_ns)
        return self._see(timeout_s, now_ns)

    def _see(self, timeout_s: float, asked_ns: int) -> Evidence:
        """One frame, or the reason why there is none. EndOfStreamError passes in free run."""
        triggered = self._camera_settings.mode is CameraMode.TRIGGERED
        try:
            frame = self._grab(timeout_s)
        except EndOfStreamError as error:
            if not triggered:
                raise
            return self._camera_failed(error, asked_ns, Reason.NO_FRAME)
        except CameraTimeoutError as error:
            return self._camera_failed(error, asked_ns, Reason.NO_FRAME)
        except CameraError as error:
            return self._camera_failed(error, asked_ns)
        except Exception as error:
            log.exception("the camera failed")
            return self._camera_failed(error, asked_ns)
        if frame is None:
            return Evidence(fault=Reason.SHUTTING_DOWN)
        self._camera_failures = 0
        self._last_frame_ns = self._clock.mono_ns()
        grab_ms = (self._last_frame_ns - asked_ns) / 1e6
        requested = asked_ns if triggered else None
        return Evidence(frame=frame, requested_mono_ns=requested, latency_ms={"grab": grab_ms})

    def _grab(self, timeout_s: float) -> Frame | None:
        """Waits in slices, so that heart and stop flag go on; None when told to stop."""
        end_ns = self._clock.mono_ns() + round(timeout_s * 1e9)
        while True:
            began_ns = self._clock.mono_ns()
            slice_s = min(SLICE_S, max(0.0, (end_ns - began_ns) / 1e9))
            try:
                return self._parts.camera.grab(slice_s)
            except CameraTimeoutError:
                now_ns = self._clock.mono_ns()
                # A camera that gives up early will not do better if asked again.
                gave_up = now_ns - began_ns < slice_s * 1e9 / 2
                if gave_up or now_ns >= end_ns:
                    raise
                if self._stop_is_due(now_ns):
                    return None
            self._breathe()

    def _stop_is_due(self, now_ns: int) -> bool:
        if not self._parts.stop.requested():
            return False
        if self._stop_seen_ns is None:
            self._stop_seen_ns = now_ns
        return now_ns - self._stop_seen_ns > GRACE_NS

    def _camera_failed(
        self, error: Exception, asked_ns: int, fault: Reason = Reason.CAMERA_FAILED
    ) -> Evidence:
        log.warning("no frame: %s", error)
        self._camera_failures += 1
        grab_ms = (self._clock.mono_ns() - asked_ns) / 1e6
        return Evidence(fault=fault, latency_ms={"grab": grab_ms})

    def _examine(self, evidence: Evidence) -> Evidence:
        """Adds what the model says of the frame; a frame that proves nothing is not shown."""
        frame = evidence.frame
        if frame is None:
            return evidence
        began_ns = self._clock.mono_ns()
        fault = frame_fault(frame, self._parts.rules, began_ns, evidence.requested_mono_ns)
        if fault is not None:
            return replace(evidence, fault=fault)
        try:
            inspection = self._infer(frame)
        except (MetalEdgeError, ValueError) as error:
            log.error("inference failed: %s", error)
            return self._inference_failed(evidence)
        except Exception:
            log.exception("inference failed")
            return self._inference_failed(evidence)
        self._inference_failures = 0
        done_ns = self._clock.mono_ns()
        height, width = frame.image.shape[:2]
        area = self._parts.bundle.manifest.preprocess.crop or (0, 0, width, height)
        assessment = assess(inspection, self._parts.rules, area)
        latency = {
            **evidence.latency_ms,
            "infer": (done_ns - began_ns) / 1e6,
            "post": (self._clock.mono_ns() - done_ns) / 1e6,
        }
        return replace(evidence, inspection=inspection, assessment=assessment, latency_ms=latency)

    def _infer(self, frame: Frame) -> Inspection:
        size = self._parts.bundle.manifest.preprocess
        image = prepare(frame.image, size.width, size.height, size.crop)
        return self._parts.runner.run(image[None])[0]

    def _inference_failed(self, evidence: Evidence) -> Evidence:
        self._inference_failures += 1
        return replace(evidence, fault=Reason.INFERENCE_FAILED)

    def _report(self, trigger: Trigger, evidence: Evidence) -> None:
        now_ns = self._clock.mono_ns()
        self._parts.reporter.report(decide(trigger, evidence, self._parts.rules, now_ns))
        self._parts.publisher.pump()

    def _rest(self) -> None:
        """A broken camera that fails at once must not turn the loop into a storm."""
        until_ns = self._clock.mono_ns() + self._beat_ns
        while self._clock.mono_ns() < until_ns and not self._parts.stop.requested():
            self._parts.queue.take(min(SLICE_S, self._beat_ns / 1e9))
            self._breathe()

    def _breathe(self) -> None:
        """Broker, heartbeat, watchdog; does nothing until the next beat is due."""
        self._parts.publisher.pump()
        now_ns = self._clock.mono_ns()
        if now_ns < self._next_beat_ns:
            return
        self._next_beat_ns = max(self._next_beat_ns + self._beat_ns, now_ns)
        self._parts.reporter.clock_state = read_clock_state()
        health = self._parts.publisher.health()
        self._tell_state(health)
        self._parts.publisher.heartbeat(self._heartbeat(health, now_ns))
        waiting_ns = self._parts.queue.oldest_deadline_ns()
        if waiting_ns is None or now_ns - waiting_ns < NO_PROGRESS_NS:
            self._parts.notifier.watchdog()

    def _tell_state(self, health: BrokerHealth) -> None:
        """Publishes `state` when the list of problems changes."""
        problems = list(health.problems)
        triggered = self._camera_settings.mode is CameraMode.TRIGGERED
        if self._camera_failures >= (FAILURES_TO_DEGRADE if triggered else 1):
            problems.append("camera")
        if self._inference_failures >= FAILURES_TO_DEGRADE:
            problems.append("inference")
        if tuple(problems) == self._problems:
            return
        self._problems = tuple(problems)
        status = "degraded" if problems else "online"
        text = f"{status}: {', '.join(problems)}" if problems else status
        (log.warning if problems else log.info)("the line is %s", text)
        self._parts.notifier.status(text)
        state = state_payload(status, self._parts.identity, self._clock.utc_ns(), self._problems)
        self._parts.publisher.retain("state", state)

    def _heartbeat(self, health: BrokerHealth, now_ns: int) -> dict[str, Any]:
        last, utc_ns = self._last_frame_ns, self._clock.utc_ns()
        return {
            "schema": SCHEMA,
            "session_id": self._parts.identity.session_id,
            "seq": next(self._beats),
            "t_publish": iso_utc(utc_ns),
            "t_publish_ns": utc_ns,
            "healthy": not self._problems,
            "problems": list(self._problems),
            "last_frame_age_ms": None if last is None else (now_ns - last) / 1e6,
            "last_decision_seq": self._parts.reporter.last_seq,
            "puback_age_ms": health.puback_age_ms,
            "outbox_depth": health.events_waiting,
            "events_dropped": health.events_dropped,
            "decisions_dropped": health.decisions_dropped,
            "queue_depth": len(self._parts.queue),
            "decisions": self._parts.reporter.counts(),
            "clock_synced": self._parts.reporter.clock_state.synced,
        }

    def _deadline_ns(self) -> int:
        return round(self._parts.settings.decision.deadline_ms * 1e6)
