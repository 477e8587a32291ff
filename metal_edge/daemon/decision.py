"""The decision core: evidence in, verdict out. Pure; no I/O, no clock of its own.

A part passes only on a fresh, finite, in-time score below a calibrated threshold. Every other
combination of evidence, including evidence that contradicts itself, ends in `reject` or
`unknown`; the line treats both the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import cv2
import numpy as np

from metal_edge.domain import Decision, FloatMap, Frame, Inspection, Region, Trigger, Verdict

# A payload names the worst places, not every speck of a noisy map.
MAX_REGIONS = 16


class Reason(StrEnum):
    """Why a verdict is what it is. Part of the message schema: add, never rename."""

    OK = "ok"
    SCORE = "score_at_or_above_threshold"
    NO_FRAME = "no_frame"
    CAMERA_FAILED = "camera_failed"
    STALE_FRAME = "stale_frame"
    WRONG_FRAME_SIZE = "wrong_frame_size"
    INFERENCE_FAILED = "inference_failed"
    NOT_FINITE = "not_finite"
    NO_THRESHOLD = "no_threshold"
    DEADLINE_MISSED = "deadline_missed"
    QUEUE_OVERFLOW = "queue_overflow"
    SHUTTING_DOWN = "shutting_down"
    DUPLICATE_TRIGGER = "duplicate_trigger"


@dataclass(frozen=True, slots=True)
class Rules:
    """What evidence is held against.

    Attributes:
        threshold: calibrated image score; None or non-finite never passes anything.
        max_frame_age_ns: an older frame is stale.
        source_size: width, height that frames must have; None accepts any.
    """

    threshold: float | None
    max_frame_age_ns: int
    source_size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What was found out about one trigger.

    Attributes:
        fault: what prevented a result; such a part never passes, whatever else is known.
        requested_mono_ns: when the camera was asked. An older frame shows another part.
        latency_ms: grab, infer, post.
    """

    frame: Frame | None = None
    inspection: Inspection | None = None
    regions: tuple[Region, ...] = ()
    fault: Reason | None = None
    requested_mono_ns: int | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)


def decide(trigger: Trigger, evidence: Evidence, rules: Rules, now_mono_ns: int) -> Decision:
    """The verdict on one trigger. `seq` is 0 until the decision is published.

    Args:
        trigger: what asked for the verdict, with its deadline.
        evidence: what the camera and the model gave.
        rules: threshold and freshness.
        now_mono_ns: the moment of the decision; all of the work must lie before it.
    """
    frame, inspection = evidence.frame, evidence.inspection
    verdict, reason = _judge(trigger, evidence, rules, now_mono_ns)
    score = inspection.score if inspection is not None and is_finite(inspection) else None
    return Decision(
        verdict=verdict,
        reason=reason,
        trigger=trigger,
        seq=0,
        frame_id=frame.frame_id if frame else None,
        camera_id=frame.camera_id if frame else None,
        score=score,
        threshold=_finite_or_none(rules.threshold),
        regions=evidence.regions if score is not None else (),
        t_exposure_utc_ns=frame.t_utc_ns if frame else None,
        t_exposure_mono_ns=frame.t_mono_ns if frame else None,
        time_source=frame.time_source if frame else None,
        latency_ms=dict(evidence.latency_ms),
    )


def _judge(
    trigger: Trigger, evidence: Evidence, rules: Rules, now_mono_ns: int
) -> tuple[Verdict, Reason]:
    """Doubts first, in the order in which a person would want to hear them."""
    frame, inspection, threshold = evidence.frame, evidence.inspection, rules.threshold
    if evidence.fault is not None:
        return Verdict.UNKNOWN, evidence.fault
    if frame is None:
        return Verdict.UNKNOWN, Reason.NO_FRAME
    fault = frame_fault(frame, rules, now_mono_ns, evidence.requested_mono_ns)
    if fault is None and now_mono_ns > trigger.deadline_mono_ns:
        fault = Reason.DEADLINE_MISSED
    if fault is not None:
        return Verdict.UNKNOWN, fault
    return _judge_inspection(inspection, threshold)


def _judge_inspection(
    inspection: Inspection | None, threshold: float | None
) -> tuple[Verdict, Reason]:
    """The model's part, once the frame is above doubt."""
    if inspection is None:
        return Verdict.UNKNOWN, Reason.INFERENCE_FAILED
    if not is_finite(inspection):
        return Verdict.UNKNOWN, Reason.NOT_FINITE
    if threshold is None or not math.isfinite(threshold):
        return Verdict.UNKNOWN, Reason.NO_THRESHOLD
    if inspection.score < threshold:
        return Verdict.PASS, Reason.OK
    return Verdict.REJECT, Reason.SCORE


def frame_fault(
    frame: Frame, rules: Rules, now_mono_ns: int, requested_mono_ns: int | None
) -> Reason | None:
    """Why this frame cannot prove anything about this part; None when it can.

    A time stamp in the future is as untrustworthy as an old one.
    """
    height, width = frame.image.shape[:2]
    if rules.source_size is not None and (width, height) != rules.source_size:
        return Reason.WRONG_FRAME_SIZE
    if not 0 <= now_mono_ns - frame.t_mono_ns <= rules.max_frame_age_ns:
        return Reason.STALE_FRAME
    if requested_mono_ns is not None and frame.t_mono_ns < requested_mono_ns:
        return Reason.STALE_FRAME
    return None


def is_finite(inspection: Inspection) -> bool:
    """True when the score and every value of a non-empty 2-D map are finite."""
    heat = inspection.anomaly_map
    if not math.isfinite(inspection.score) or heat.ndim != 2 or heat.size == 0:
        return False
    return bool(np.isfinite(heat).all())


def find_regions(
    anomaly_map: FloatMap, threshold: float, area: tuple[int, int, int, int]
) -> tuple[Region, ...]:
    """Connected areas (8 neighbours) at or above the threshold, worst first, at most MAX_REGIONS.

    Args:
        anomaly_map: finite float32 [h, w].
        threshold: in the map's unit.
        area: x, y, width, height of what the map covers, in source-image pixels.
    """
    hot = (anomaly_map >= threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(hot, connectivity=8)
    if count <= 1:
        return ()
    # One pass for all labels: a noisy map has thousands, and the part is waiting.
    peaks = np.full(count, -np.inf, dtype=np.float32)
    np.maximum.at(peaks, np.asarray(labels, dtype=np.intp).ravel(), anomaly_map.ravel())
    order = sorted(range(1, count), key=lambda label: -peaks[label])[:MAX_REGIONS]
    x0, y0, width, height = area
    scale_x, scale_y = width / anomaly_map.shape[1], height / anomaly_map.shape[0]
    found = []
    for label in order:
        left, top, across, down, pixels = (int(v) for v in stats[label])
        # Outward rounding: the region must cover what it names.
        right, bottom = math.ceil((left + across) * scale_x), math.ceil((top + down) * scale_y)
        x, y = math.floor(left * scale_x), math.floor(top * scale_y)
        found.append(
            Region(
                x=x0 + x,
                y=y0 + y,
                width=min(right, width) - x,
                height=min(bottom, height) - y,
                area=max(1, round(pixels * scale_x * scale_y)),
                peak=float(peaks[label]),
            )
        )
    return tuple(found)


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
