"""Laws of the decision core: no path from doubtful evidence to `pass`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon import decision as core
from metal_edge.daemon.decision import Evidence, Reason, Rules, assess
from metal_edge.daemon.regions import MAX_REGIONS, find_areas
from metal_edge.domain import Decision, Frame, Inspection, Trigger, Verdict

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


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 200), st.integers(1, 200), st.data())
def test_regions_cover_the_hot_cells_and_stay_inside(
    rows: int, columns: int, width: int, height: int, data: st.DataObject
) -> None:
    cells = data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    heat = np.array(cells, np.float32).reshape(rows, columns)
    x0, y0 = 7, 11
    regions = find_areas(heat, 1.0, (x0, y0, width, height)).regions
    assert len(regions) <= MAX_REGIONS
    for region in regions:
        assert x0 <= region.x and region.x + region.width <= x0 + width
        assert y0 <= region.y and region.y + region.height <= y0 + height
        assert region.width > 0 and region.height > 0 and region.area > 0
        assert region.peak == 1.0
    if len(regions) == MAX_REGIONS:
        return
    for row, column in zip(*np.nonzero(heat), strict=True):
        x, y = x0 + (column + 0.5) * width / columns, y0 + (row + 0.5) * height / rows
        assert any(r.x <= x <= r.x + r.width and r.y <= y <= r.y + r.height for r in regions)


def test_regions_are_the_connected_areas_worst_first() -> None:
    heat = np.zeros((4, 6), np.float32)
    heat[0, 0] = 0.6
    heat[2, 3] = 0.7
    heat[3, 4] = 0.9  # touches by its corner
    first, second = find_areas(heat, 0.5, (100, 50, 12, 8)).regions
    assert (first.x, first.y, first.width, first.height) == (106, 54, 4, 4)
    assert first.peak == pytest.approx(0.9)
    assert first.area == 8
    assert (second.x, second.y, second.width, second.height) == (100, 50, 2, 2)
    assert find_areas(heat, 0.95, (0, 0, 12, 8)).regions == ()
