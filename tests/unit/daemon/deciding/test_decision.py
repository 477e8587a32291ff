"""Laws of the decision core: no path from doubtful evidence to `pass`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.deciding import decision as core
from metal_edge.daemon.deciding.decision import Evidence, Reason, Rules, assess
from metal_edge.daemon.deciding.regions import RegionRules
from metal_edge.domain import Decision, Frame, Inspection, TimeSource, Trigger, Verdict

NOW = 10_000_000_000
MS = 1_000_000
RULES = Rules(threshold=0.5, max_frame_age_ns=1000 * MS, source_size=(4, 3))
TRIGGER = Trigger("t", "p", NOW - 100 * MS, NOW + 400 * MS)


def frame(t_mono_ns: int = NOW - 50 * MS, size: tuple[int, int] = (4, 3)) -> Frame:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    return Frame(image, 1, "cam0", "f1", t_mono_ns, 1_700_000_000_000_000_000)


def inspection(score: float = 0.1, worst: float = 0.1) -> Inspection:
    return Inspection(np.array([[0.0, worst], [0.1, 0.2]], np.float32), score)


GOOD = Evidence(frame=frame(), inspection=inspection(), requested_mono_ns=NOW - 90 * MS)


def decide(trigger: Trigger, evidence: Evidence, rules: Rules, now: int) -> Decision:
    """As the line does it: what was inspected is assessed with the same rules."""
    seen = evidence.inspection
    if seen is not None and evidence.assessment is None:
        evidence = replace(evidence, assessment=assess(seen, rules, (0, 0, 4, 3)))
    return core.decide(trigger, evidence, rules, now)


def test_flawless_evidence_passes() -> None:
    decision = decide(TRIGGER, GOOD, RULES, NOW)
    assert (decision.verdict, decision.reason) == (Verdict.PASS, Reason.OK)
    assert (decision.score, decision.threshold, decision.frame_id) == (0.1, 0.5, "f1")


@pytest.mark.parametrize(
    ("evidence", "rules", "now", "reason"),
    [
        (replace(GOOD, frame=None), RULES, NOW, Reason.NO_FRAME),
        (replace(GOOD, frame=frame(size=(3, 4))), RULES, NOW, Reason.WRONG_FRAME_SIZE),
        (replace(GOOD, frame=frame(NOW - 1001 * MS)), RULES, NOW, Reason.STALE_FRAME),
        (replace(GOOD, frame=frame(NOW + 1)), RULES, NOW, Reason.STALE_FRAME),
        (replace(GOOD, frame=frame(NOW - 91 * MS)), RULES, NOW, Reason.STALE_FRAME),
        (replace(GOOD, inspection=None), RULES, NOW, Reason.INFERENCE_FAILED),
        (replace(GOOD, inspection=inspection(math.nan)), RULES, NOW, Reason.NOT_FINITE),
        (replace(GOOD, inspection=inspection(-math.inf)), RULES, NOW, Reason.NOT_FINITE),
        (replace(GOOD, inspection=inspection(worst=math.nan)), RULES, NOW, Reason.NOT_FINITE),
        (
            replace(GOOD, inspection=Inspection(np.empty((0, 2), np.float32), 0.1)),
            RULES,
            NOW,
            Reason.NOT_FINITE,
        ),
        (GOOD, replace(RULES, threshold=None), NOW, Reason.NO_THRESHOLD),
        (GOOD, replace(RULES, threshold=math.inf), NOW, Reason.NO_THRESHOLD),
        (GOOD, replace(RULES, threshold=math.nan), NOW, Reason.NO_THRESHOLD),
        (GOOD, RULES, TRIGGER.deadline_mono_ns + 1, Reason.DEADLINE_MISSED),
    ],
)
def test_one_flaw_is_enough(evidence: Evidence, rules: Rules, now: int, reason: Reason) -> None:
    decision = decide(TRIGGER, evidence, rules, now)
    assert (decision.verdict, decision.reason) == (Verdict.UNKNOWN, reason)


@pytest.mark.parametrize("fault", [r for r in Reason if r is not Reason.OK])
def test_a_named_fault_beats_the_best_score(fault: Reason) -> None:
    decision = decide(TRIGGER, replace(GOOD, fault=fault), RULES, NOW)
    assert (decision.verdict, decision.reason) == (Verdict.UNKNOWN, fault)


@pytest.mark.parametrize("score", [0.5, math.nextafter(0.5, 1), 7.0])
def test_a_score_at_the_threshold_is_rejected(score: float) -> None:
    decision = decide(TRIGGER, replace(GOOD, inspection=inspection(score)), RULES, NOW)
    assert (decision.verdict, decision.reason) == (Verdict.REJECT, Reason.SCORE)


def test_the_last_moment_still_counts() -> None:
    trigger = replace(TRIGGER, deadline_mono_ns=NOW)
    assert decide(trigger, GOOD, RULES, NOW).verdict is Verdict.PASS


any_float = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 0.5, 0.1])
any_time = st.integers(NOW - 2000 * MS, NOW + 2000 * MS)
maps = st.lists(st.lists(any_float, min_size=2, max_size=2), max_size=3).map(
    lambda rows: np.array(rows, np.float32).reshape(-1, 2)
)
evidences = st.builds(
    Evidence,
    frame=st.none() | st.builds(frame, any_time, st.sampled_from([(4, 3), (3, 4), (4, 4)])),
    inspection=st.none() | st.builds(Inspection, maps, any_float),
    fault=st.none() | st.sampled_from([r for r in Reason if r is not Reason.OK]),
    requested_mono_ns=st.none() | any_time,
)


@given(evidences, st.none() | any_float, any_time, any_time)
def test_a_pass_means_that_everything_was_right(
    evidence: Evidence, threshold: float | None, deadline: int, now: int
) -> None:
    """Written the other way round than the code: from the pass back to what it must rest on."""
    rules = replace(RULES, threshold=threshold)
    decision = decide(replace(TRIGGER, deadline_mono_ns=deadline), evidence, rules, now)
    if decision.verdict is not Verdict.PASS:
        assert decision.reason is not Reason.OK
        return
    assert evidence.fault is None
    assert evidence.frame is not None and evidence.inspection is not None
    assert evidence.frame.image.shape == (3, 4, 3)
    assert now - 1000 * MS <= evidence.frame.t_mono_ns <= now <= deadline
    assert (evidence.requested_mono_ns or 0) <= evidence.frame.t_mono_ns
    values = [evidence.inspection.score, *evidence.inspection.anomaly_map.ravel().tolist()]
    assert len(values) > 1 and all(math.isfinite(value) for value in values)
    assert threshold is not None and evidence.inspection.score < threshold < math.inf


def test_the_score_that_counts_decides_and_the_graphs_own_is_told() -> None:
    heat = np.array([[0.9, 0.1], [0.1, 0.2]], np.float32)
    mask = np.array([[False, True], [True, True]])
    rules = replace(RULES, regions=RegionRules((0, 0, 4, 3), (2, 2), mask), score_share=0.0)
    decision = decide(TRIGGER, replace(GOOD, inspection=Inspection(heat, 0.9)), rules, NOW)
    assert (decision.verdict, decision.reason) == (Verdict.PASS, Reason.OK)
    assert (decision.score, decision.raw_score) == (pytest.approx(0.2), 0.9)


def test_numbers_of_another_part_or_another_model_are_not_told() -> None:
    seen = inspection(0.9, 0.9)
    made = assess(seen, RULES, (0, 0, 4, 3))
    own = replace(GOOD, inspection=seen, assessment=made)
    assert core.decide(TRIGGER, own, RULES, NOW).score == 0.9
    for evidence, rules in (
        (replace(own, inspection=inspection()), RULES),
        (own, replace(RULES, threshold=0.95)),
    ):
        decision = core.decide(TRIGGER, evidence, rules, NOW)
        assert (decision.verdict, decision.reason) == (Verdict.UNKNOWN, Reason.INCONSISTENT)
        assert (decision.score, decision.regions) == (None, ())


def test_what_is_found_is_told_even_when_it_comes_too_late() -> None:
    late = TRIGGER.deadline_mono_ns + 1
    decision = decide(TRIGGER, replace(GOOD, inspection=inspection(0.9, 0.9)), RULES, late)
    assert decision.reason is Reason.DEADLINE_MISSED
    assert (decision.score, len(decision.regions)) == (0.9, 1)


@pytest.mark.parametrize("said", [math.nan, math.inf])
def test_no_number_that_is_not_finite_gets_out(said: float) -> None:
    decision = decide(
        TRIGGER, replace(GOOD, inspection=inspection(said)), replace(RULES, threshold=said), NOW
    )
    assert (decision.score, decision.raw_score, decision.threshold) == (None, None, None)


def test_the_camera_that_was_asked_is_named_without_a_frame() -> None:
    evidence = Evidence(camera_id="cam7", fault=Reason.NO_FRAME)
    assert decide(TRIGGER, evidence, RULES, NOW).camera_id == "cam7"
    assert decide(TRIGGER, GOOD, RULES, NOW).camera_id == "cam0"
    assert decide(TRIGGER, replace(GOOD, camera_id="cam0"), RULES, NOW).verdict is Verdict.PASS


def test_everything_about_the_part_is_in_the_decision() -> None:
    latency = {"grab": 1.0, "infer": 2.0}
    decision = decide(TRIGGER, replace(GOOD, latency_ms=latency), RULES, NOW)
    assert decision.trigger is TRIGGER and decision.seq == 0
    assert (decision.t_exposure_mono_ns, decision.t_exposure_utc_ns, decision.time_source) == (
        NOW - 50 * MS,
        1_700_000_000_000_000_000,
        TimeSource.ARRIVAL,
    )
    assert decision.latency_ms == latency


def test_a_frame_of_any_size_counts_where_none_is_asked_for() -> None:
    rules = replace(RULES, source_size=None)
    assert decide(TRIGGER, replace(GOOD, frame=frame(size=(9, 9))), rules, NOW).verdict == "pass"


def test_a_frame_from_the_moment_of_the_request_or_of_the_decision_is_fresh() -> None:
    for when in (NOW - 90 * MS, NOW):
        assert decide(TRIGGER, replace(GOOD, frame=frame(when)), RULES, NOW).verdict == "pass"
    oldest = replace(GOOD, frame=frame(NOW - 1000 * MS), requested_mono_ns=None)
    assert decide(TRIGGER, oldest, RULES, NOW).verdict is Verdict.PASS


@pytest.mark.parametrize(("late_ns", "verdict"), [(0, Verdict.PASS), (1, Verdict.UNKNOWN)])
def test_a_picture_taken_after_the_part_had_gone_proves_nothing(
    late_ns: int, verdict: Verdict
) -> None:
    trigger = replace(TRIGGER, expose_by_mono_ns=NOW - 50 * MS)
    decision = decide(trigger, replace(GOOD, frame=frame(NOW - 50 * MS + late_ns)), RULES, NOW)
    assert decision.verdict is verdict
    if late_ns:
        assert decision.reason == Reason.STALE_FRAME


@pytest.mark.parametrize("score", [None, math.nan, 0.5, 0.7])
def test_a_pass_without_proof_cannot_even_be_constructed(score: float | None) -> None:
    with pytest.raises(ValueError, match="pass needs a finite score"):
        Decision(Verdict.PASS, Reason.OK, TRIGGER, 1, score=score, threshold=0.5)


@pytest.mark.parametrize("verdict", [Verdict.REJECT, Verdict.UNKNOWN])
def test_a_pass_with_a_view_that_did_not_pass_cannot_be_constructed(verdict: Verdict) -> None:
    view = Decision(verdict, Reason.SCORE, TRIGGER, 0)
    with pytest.raises(ValueError, match="pass of every view"):
        Decision(Verdict.PASS, Reason.OK, TRIGGER, 1, score=0.1, threshold=0.5, views=(view,))
