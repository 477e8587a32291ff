"""The decision core: evidence in, verdict out. Pure; no I/O, no clock of its own.

A part passes only on a fresh, finite, in-time score below a calibrated threshold. Every other
combination of evidence, including evidence that contradicts itself, ends in `reject` or
`unknown`; the line treats both the same. docs/decisions.md explains the rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from metal_edge.daemon.deciding.regions import (
    Area,
    RegionRules,
    find_areas,
    hottest_count,
    reduce_map,
)
from metal_edge.domain import Decision, Frame, Inspection, Region, Trigger, Verdict

# Of score or threshold. Graphs of every precision reduce their map in FP32; only the order of the
# sum is theirs, which moves a mean by less than a millionth.
REDUCTION_TOLERANCE = 1e-4


class Reason(StrEnum):
    """Why a verdict is what it is. Part of the message schema: add, never rename."""

    OK = "ok"
    SCORE = "score_at_or_above_threshold"
    NO_FRAME = "no_frame"
    CAMERA_FAILED = "camera_failed"
    STALE_FRAME = "stale_frame"
    WRONG_FRAME_SIZE = "wrong_frame_size"
    TORN_FRAME = "torn_frame"
    FROZEN_FRAME = "frozen_frame"
    BLACK_FRAME = "black_frame"
    SATURATED_FRAME = "saturated_frame"
    LOST_TRIGGER = "lost_trigger"
    INFERENCE_FAILED = "inference_failed"
    NOT_FINITE = "not_finite"
    NO_THRESHOLD = "no_threshold"
    INCONSISTENT = "inconsistent"
    DEADLINE_MISSED = "deadline_missed"
    QUEUE_OVERFLOW = "queue_overflow"
    DUPLICATE_TRIGGER = "duplicate_trigger"
    VIEW_MISSING = "view_missing"
    LINE_HELD = "line_held"
    DISARMED = "disarmed"
    CHANGING_RECIPE = "changing_recipe"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """What evidence is held against.

    Attributes:
        threshold: calibrated image score; None or non-finite never passes anything.
        max_frame_age_ns: an older frame is stale.
        source_size: width, height that frames must have; None accepts any.
        regions: where and how large an anomaly must be; None: anywhere, of any size.
        score_share: the image score is the mean of this share of the map's highest pixels; 0:
            the maximum. None where the bundle does not say; then no score can be formed anew, nor
            held against the map.
    """

    threshold: float | None
    max_frame_age_ns: int
    source_size: tuple[int, int] | None = None
    regions: RegionRules | None = None
    score_share: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """What the rules make of one inspection.

    Attributes:
        inspection, rules: what it was made of; it proves nothing about any other.
        score: the score that counts; None exactly when there is a fault.
        regions: worst first, at most MAX_REGIONS.
        fault: why no score can be trusted.
    """

    inspection: Inspection
    rules: Rules
    score: float | None
    regions: tuple[Region, ...] = ()
    fault: Reason | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What was found out about one trigger.

    Attributes:
        camera_id: who was asked. A frame of another camera proves nothing.
        fault: what prevented a result; such a part never passes, whatever else is known.
        requested_mono_ns: when the camera was asked. An older frame shows another part.
        latency_ms: grab, infer, post.
    """

    frame: Frame | None = None
    inspection: Inspection | None = None
    assessment: Assessment | None = None
    camera_id: str | None = None
    fault: Reason | None = None
    requested_mono_ns: int | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)


def assess(inspection: Inspection, rules: Rules, area: Area) -> Assessment:
    """The score that counts, and the regions that go with it.

    It is the graph's own score unless the rules take something away. Then it is the graph's
    reduction over the inspected pixels, a mean over as many as before, where areas below the
    minimum count as just not hot. So taking away never raises a score, which keeps the promise
    that the threshold carries; and hotter is never better, since a speck that turns hot counts
    no less than before.

    Args:
        inspection: what the model said.
        rules: thresholds and regions of the model that said it.
        area: x, y, width, height of what the map covers, in source-image pixels.
    """
    fault = _assessment_fault(inspection, rules, area)
    if fault is not None or rules.threshold is None:
        return Assessment(inspection, rules, None, fault=fault or Reason.NO_THRESHOLD)
    heat, wanted = inspection.anomaly_map, rules.regions
    hot = find_areas(heat, rules.threshold, area, wanted)
    score = inspection.score
    inspected = wanted.inspected if wanted is not None else None
    if inspected is not None or hot.too_small is not None:
        values = heat if inspected is None else heat[inspected]
        if hot.too_small is not None:
            small = hot.too_small if inspected is None else hot.too_small[inspected]
            values = np.where(small, np.minimum(values, _just_below(rules.threshold)), values)
        score = reduce_map(values, hottest_count(rules.score_share or 0.0, heat.size))
    return Assessment(inspection, rules, score, hot.regions)


def _assessment_fault(inspection: Inspection, rules: Rules, area: Area) -> Reason | None:
    """Why no score of this inspection can be trusted under these rules."""
    if not is_finite(inspection):
        return Reason.NOT_FINITE
    if rules.threshold is None or not math.isfinite(rules.threshold):
        return Reason.NO_THRESHOLD
    share = rules.score_share
    if share is not None and not reproduces(inspection, share, rules.threshold):
        return Reason.INCONSISTENT
    if rules.regions is not None and not _fits(inspection, rules.regions, share, area):
        return Reason.INCONSISTENT
    return None


def _fits(
    inspection: Inspection, wanted: RegionRules, score_share: float | None, area: Area
) -> bool:
    """False where the region rules were made for another map, or cannot be carried out on it."""
    heat = inspection.anomaly_map
    if heat.shape != wanted.shape or area != wanted.area:
        return False
    if not wanted.filters:
        return True
    return score_share is not None and wanted.pixels >= hottest_count(score_share, heat.size)


def _just_below(threshold: float) -> np.float32:
    """The largest number of the map's kind that is not hot."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) < threshold else np.nextafter(nearest, np.float32(-np.inf))


def reproduces(inspection: Inspection, score_share: float, threshold: float) -> bool:
    """True when the reduction, over the whole map, gives the graph's own score.

    If it does not, one of the two outputs is of something else; and a score over a part of the
    map would be compared with a threshold that was calibrated for something else.
    """
    heat, slack = inspection.anomaly_map, REDUCTION_TOLERANCE
    ours = reduce_map(heat, hottest_count(score_share, heat.size))
    return math.isclose(ours, inspection.score, rel_tol=slack, abs_tol=slack * abs(threshold))


def decide(trigger: Trigger, evidence: Evidence, rules: Rules, now_mono_ns: int) -> Decision:
    """The verdict on one trigger. `seq` is 0 until the decision is published.

    Args:
        trigger: what asked for the verdict, with its deadline.
        evidence: what the camera and the model gave.
        rules: the same object that the evidence was assessed with.
        now_mono_ns: the moment of the decision; all of the work must lie before it.
    """
    frame, inspection = evidence.frame, evidence.inspection
    verdict, reason = _judge(trigger, evidence, rules, now_mono_ns)
    assessment = evidence.assessment if _belongs(evidence, rules) else None
    return Decision(
        verdict=verdict,
        reason=reason,
        trigger=trigger,
        seq=0,
        frame_id=frame.frame_id if frame else None,
        camera_id=evidence.camera_id or (frame.camera_id if frame else None),
        score=assessment.score if assessment else None,
        raw_score=_finite_or_none(inspection.score) if inspection else None,
        threshold=_finite_or_none(rules.threshold),
        regions=assessment.regions if assessment else (),
        t_exposure_utc_ns=frame.t_utc_ns if frame else None,
        t_exposure_mono_ns=frame.t_mono_ns if frame else None,
        time_source=frame.time_source if frame else None,
        latency_ms=dict(evidence.latency_ms),
    )


def _judge(
    trigger: Trigger, evidence: Evidence, rules: Rules, now_mono_ns: int
) -> tuple[Verdict, Reason]:
    """Doubts first, in the order in which a person would want to hear them."""
    doubt = _doubt(trigger, evidence, rules, now_mono_ns)
    if doubt is not None:
        return Verdict.UNKNOWN, doubt
    score = evidence.assessment.score if evidence.assessment else None
    if score is None or rules.threshold is None:
        return Verdict.UNKNOWN, Reason.NO_THRESHOLD
    if score < rules.threshold:
        return Verdict.PASS, Reason.OK
    return Verdict.REJECT, Reason.SCORE


def _doubt(trigger: Trigger, evidence: Evidence, rules: Rules, now_mono_ns: int) -> Reason | None:
    frame = evidence.frame
    if evidence.fault is not None:
        return evidence.fault
    if frame is None:
        return Reason.NO_FRAME
    if evidence.camera_id not in (None, frame.camera_id):
        return Reason.INCONSISTENT
    fault = frame_fault(frame, rules, now_mono_ns, evidence.requested_mono_ns)
    latest_ns = trigger.expose_by_mono_ns
    if fault is None and latest_ns is not None and frame.t_mono_ns > latest_ns:
        fault = Reason.STALE_FRAME  # the part had gone by then
    if fault is None and now_mono_ns > trigger.deadline_mono_ns:
        fault = Reason.DEADLINE_MISSED
    return fault or _inference_doubt(evidence, rules)


def _inference_doubt(evidence: Evidence, rules: Rules) -> Reason | None:
    """The model's part, once the frame is above doubt."""
    if evidence.assessment is None:
        return Reason.INFERENCE_FAILED
    if not _belongs(evidence, rules):
        return Reason.INCONSISTENT
    return evidence.assessment.fault


def _belongs(evidence: Evidence, rules: Rules) -> bool:
    """False for what was assessed from another part's map, or under another model's rules."""
    made = evidence.assessment
    return made is not None and made.inspection is evidence.inspection and made.rules is rules


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


def still_in_time(decision: Decision, now_mono_ns: int) -> Decision:
    """The decision, but `unknown` for a `pass` that is about to be told after its deadline."""
    if decision.verdict is not Verdict.PASS or now_mono_ns <= decision.trigger.deadline_mono_ns:
        return decision
    return replace(decision, verdict=Verdict.UNKNOWN, reason=Reason.DEADLINE_MISSED)


def is_finite(inspection: Inspection) -> bool:
    """True when the score and every value of a non-empty 2-D map are finite."""
    heat = inspection.anomaly_map
    if not math.isfinite(inspection.score) or heat.ndim != 2 or heat.size == 0:
        return False
    return bool(np.isfinite(heat).all())


def join(
    trigger: Trigger, decisions: Sequence[Decision], expected: Sequence[str], now_mono_ns: int
) -> Decision:
    """One verdict on a part that several cameras looked at.

    Rejected if any view rejects; passed only if each expected view passes, once, in time;
    otherwise unknown, with the first doubt in the order of `expected`. All other fields are those
    of the view that decided: the one furthest above its threshold, or the doubtful one.

    Args:
        trigger: what asked for the verdict.
        decisions: of the views, in any order, `camera_id` set.
        expected: camera ids; a view that gave nothing is as bad as one that failed.
        now_mono_ns: the moment of joining.
    """
    ours = [d for d in decisions if _same_part(d.trigger, trigger) and d.camera_id in expected]
    views = tuple(_view(camera_id, ours, trigger) for camera_id in expected)
    rejecting = [d for d in ours if d.verdict is Verdict.REJECT]
    doubtful = [d for d in views if d.verdict is Verdict.UNKNOWN]
    latest = min(d.trigger.deadline_mono_ns for d in (*ours, _missing("", trigger)))
    if rejecting:
        return replace(max(rejecting, key=_excess), trigger=trigger, views=views)
    if doubtful:
        return replace(doubtful[0], trigger=trigger, views=views)
    if not views:
        return replace(_missing("", trigger), camera_id=None)
    worst = replace(max(views, key=_excess), trigger=trigger, views=views)
    if len(ours) != len(decisions) or len(ours) != len(views):
        return replace(worst, verdict=Verdict.UNKNOWN, reason=Reason.INCONSISTENT)
    if now_mono_ns > latest:
        return replace(worst, verdict=Verdict.UNKNOWN, reason=Reason.DEADLINE_MISSED)
    return worst


def _same_part(one: Trigger, other: Trigger) -> bool:
    return (one.trigger_id, one.part_id) == (other.trigger_id, other.part_id)


def _view(camera_id: str, decisions: Sequence[Decision], trigger: Trigger) -> Decision:
    """This camera's one decision; several contradict each other even when they agree."""
    own = [d for d in decisions if d.camera_id == camera_id]
    if not own:
        return _missing(camera_id, trigger)
    if len(own) > 1:
        return replace(own[0], verdict=Verdict.UNKNOWN, reason=Reason.INCONSISTENT)
    return own[0]


def _missing(camera_id: str, trigger: Trigger) -> Decision:
    return Decision(Verdict.UNKNOWN, Reason.VIEW_MISSING, trigger, 0, camera_id=camera_id)


def _excess(decision: Decision) -> float:
    """How far a view is above its own threshold, comparable between models."""
    score, threshold = decision.score, decision.threshold
    if score is None or threshold is None:
        return -math.inf
    return (score - threshold) / max(abs(threshold), 1e-30)


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
