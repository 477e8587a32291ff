"""One view at work: from the shot that is asked for to what its model says of the frame."""

from __future__ import annotations

import logging
from dataclasses import replace

from metal_edge.daemon.cameras import (
    CameraTimeoutError,
    EarlyFrameError,
    EndOfStreamError,
    LateRequestError,
    TornFrameError,
)
from metal_edge.daemon.clock import Clock
from metal_edge.daemon.deciding.decision import Evidence, Reason, assess, frame_fault
from metal_edge.daemon.line.bell import Bell
from metal_edge.daemon.line.grabber import Grabber, Outcome, Shot
from metal_edge.daemon.line.inference import Found, Look, infer
from metal_edge.daemon.line.model import Model, View
from metal_edge.domain import Frame
from metal_edge.errors import MetalEdgeError
from metal_edge.imaging import prepare

log = logging.getLogger(__name__)

# So many failures in a row are no longer bad luck.
FAILURES_TO_HOLD = 3


class ViewWorker:
    """Camera, checks and model of one view, and how they are doing. Used by the deciding thread.

    Args:
        view: with its camera open.
        clock: of the line.
        bell: wakes the deciding thread.
        triggered: one silent part may be bad luck; a camera that sends by itself is never silent.
    """

    def __init__(self, view: View, clock: Clock, bell: Bell, triggered: bool) -> None:
        self.view = view
        self._triggered = triggered
        self._failures = dict.fromkeys(("camera", "picture", "inference"), 0)
        self.last_frame_ns: int | None = None
        self._clock = clock
        self._grabber = Grabber(view.camera, view.camera_id, clock, bell)
        self._asked_ns = 0
        self._must_be_newer = False
        self._told = ""

    def start(self) -> None:
        """Starts the camera's thread."""
        self._grabber.start()

    def close(self) -> None:
        """Ends the camera's thread."""
        self._grabber.close()

    def serve(self, model: Model) -> None:
        """From now on this model judges; never while a part is in hand."""
        self.view = self.view.serving(model)

    def ask(self, shot: Shot, asked_ns: int) -> None:
        """Asks for a frame; with `shot.trigger` it must be newer than `asked_ns`."""
        self._asked_ns = asked_ns
        self._must_be_newer = shot.trigger
        self._grabber.ask(shot)

    def outcome(self) -> Outcome | None:
        """What became of the shot, once it is there."""
        return self._grabber.take()

    def faults(self) -> tuple[str, ...]:
        """What has failed again and again, so that this view cannot inspect: camera, inference."""
        return self._failing("camera", "inference")

    def notes(self) -> tuple[str, ...]:
        """What is wrong with it besides: picture after picture that shows no part."""
        return self._failing("picture")

    def forget(self) -> None:
        """Somebody says that it is mended."""
        self._failures = dict.fromkeys(self._failures, 0)

    def seen(self, outcome: Outcome) -> Evidence:
        """The frame, or the reason why there is none."""
        latency = {"grab": (outcome.t_mono_ns - self._asked_ns) / 1e6}
        if outcome.frame is None:
            self._tell(str(outcome.error))
            fault = _fault_of(outcome.error)
            self._camera_failed(fault)
            return self._evidence(latency, fault=fault)
        self.there()
        self.last_frame_ns = outcome.t_mono_ns
        requested = self._asked_ns if self._must_be_newer else None
        return self._evidence(latency, frame=outcome.frame, requested_mono_ns=requested)

    def there(self) -> None:
        """The camera is in order, though it may have nothing to show."""
        self._failures["camera"], self._told = 0, ""

    def silent(self, fault: Reason) -> Evidence:
        """Nothing came in time."""
        if fault is not Reason.SHUTTING_DOWN:
            self._tell("nothing in time")
            self._camera_failed(fault)
        latency = {"grab": (self._clock.mono_ns() - self._asked_ns) / 1e6}
        return self._evidence(latency, fault=fault)

    def _evidence(
        self,
        latency_ms: dict[str, float],
        frame: Frame | None = None,
        fault: Reason | None = None,
        requested_mono_ns: int | None = None,
    ) -> Evidence:
        return Evidence(
            frame=frame,
            camera_id=self.view.camera_id,
            fault=fault,
            requested_mono_ns=requested_mono_ns,
            latency_ms=latency_ms,
        )

    def examine(self, evidence: Evidence, deadline_ns: int) -> Evidence:
        """Adds what the model says of the frame; a frame that proves nothing is not shown."""
        look = self.look(evidence, deadline_ns)
        if look.images is None:
            return look.evidence
        return self.assessed(look, infer(look, self._clock))

    def look(self, evidence: Evidence, deadline_ns: int) -> Look:
        """What the model is to be asked; nothing, where the evidence settles it."""
        began_ns, images = self._clock.mono_ns(), None
        frame = evidence.frame
        if frame is not None and evidence.fault is None:
            try:
                fault = self._doubt(frame, evidence.requested_mono_ns, began_ns)
                if fault is None and began_ns > deadline_ns:
                    fault = Reason.DEADLINE_MISSED  # the time is better spent on the next part
                if fault is None:
                    size = self.view.bundle.manifest.preprocess
                    images = prepare(frame.image, size.width, size.height, size.crop)[None]
                else:
                    evidence = replace(evidence, fault=fault)
            except Exception as error:  # noqa: BLE001  (logged there)
                evidence = self._inference_failed(evidence, error)
        return Look(evidence, began_ns, images, self.view.runner)

    def assessed(self, look: Look, found: Found) -> Evidence:
        """Adds what the rules make of what the model said."""
        evidence, inspection = look.evidence, found.inspection
        frame = evidence.frame
        if frame is None or inspection is None:
            return self._inference_failed(evidence, found.error)
        try:
            assessment = assess(inspection, self.view.rules, self._area(frame))
        except Exception as error:  # noqa: BLE001  (logged there)
            return self._inference_failed(evidence, error)
        self._count("inference", False)
        latency = {
            **evidence.latency_ms,
            "infer": (found.done_ns - look.began_ns) / 1e6,
            "post": (self._clock.mono_ns() - found.done_ns) / 1e6,
        }
        return replace(evidence, inspection=inspection, assessment=assessment, latency_ms=latency)

    def _doubt(self, frame: Frame, requested_mono_ns: int | None, now_ns: int) -> Reason | None:
        """Why the model need not see it."""
        # Every frame counts for a frozen picture, also one that is refused otherwise.
        unlikely = self.view.checks.fault(frame.image)
        fault = frame_fault(frame, self.view.rules, now_ns, requested_mono_ns) or unlikely
        self._count("picture", unlikely is not None)
        return fault

    def _failing(self, *names: str) -> tuple[str, ...]:
        return tuple(name for name in names if self._failures[name] >= FAILURES_TO_HOLD)

    def _tell(self, why: str) -> None:
        """A broken camera says the same many times a second."""
        level = logging.DEBUG if why == self._told else logging.WARNING
        log.log(level, "camera %s gave no frame: %s", self.view.camera_id, why)
        self._told = why

    def _camera_failed(self, fault: Reason) -> None:
        bad_luck = self._triggered or fault is Reason.TORN_FRAME
        self._failures["camera"] += 1 if bad_luck else FAILURES_TO_HOLD

    def _count(self, what: str, failed: bool) -> None:
        self._failures[what] = self._failures[what] + 1 if failed else 0

    def _area(self, frame: Frame) -> tuple[int, int, int, int]:
        """What the map covers, in source-image pixels."""
        height, width = frame.image.shape[:2]
        return self.view.bundle.manifest.preprocess.crop or (0, 0, width, height)

    def _inference_failed(self, evidence: Evidence, error: Exception | None) -> Evidence:
        """A back end is somebody else's code; this part gets its verdict all the same."""
        expected = isinstance(error, MetalEdgeError | ValueError)
        log.error("inference failed: %s", error, exc_info=None if expected else error)
        self._count("inference", True)
        return replace(evidence, fault=Reason.INFERENCE_FAILED)


def _fault_of(error: Exception | None) -> Reason:
    if isinstance(error, TornFrameError):
        return Reason.TORN_FRAME
    if isinstance(error, EarlyFrameError | LateRequestError):
        return Reason.STALE_FRAME
    if isinstance(error, CameraTimeoutError | EndOfStreamError):
        return Reason.NO_FRAME
    return Reason.CAMERA_FAILED
