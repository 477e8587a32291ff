"""Several views of one part: whose word is told, and what the others said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metal_edge.daemon.deciding.decision import Reason, join
from metal_edge.domain import Decision, Region, Trigger, Verdict

NOW = 10_000_000_000
TRIGGER = Trigger("t", "p", NOW - 100, NOW + 100)
EXPECTED = ("left", "right", "top")


def view(camera_id: str, score: float, threshold: float = 1.0) -> Decision:
    good = score < threshold
    return Decision(
        Verdict.PASS if good else Verdict.REJECT,
        Reason.OK if good else Reason.SCORE,
        TRIGGER,
        0,
        frame_id=f"frame of {camera_id}",
        camera_id=camera_id,
        score=score,
        raw_score=score,
        threshold=threshold,
        regions=() if good else (Region(1, 2, 3, 4, 12, score),),
    )


def doubt(camera_id: str, reason: Reason) -> Decision:
    return Decision(Verdict.UNKNOWN, reason, TRIGGER, 0, camera_id=camera_id)


GOOD = [view("left", 0.2), view("right", 0.6), view("top", 0.4)]


def test_all_pass_and_the_one_nearest_to_its_threshold_is_told() -> None:
    joined = join(TRIGGER, GOOD, EXPECTED, NOW)
    assert (joined.verdict, joined.reason, joined.camera_id) == (Verdict.PASS, Reason.OK, "right")
    assert joined.views == tuple(GOOD)


def test_near_is_counted_in_each_models_own_unit() -> None:
    views = [view("left", 0.5), view("right", 70.0, 100.0), view("top", 0.06, 0.1)]
    assert join(TRIGGER, views, EXPECTED, NOW).camera_id == "right"
    below_zero = [view("left", -1.5, -1.0), view("right", 0.4), view("top", 0.3)]
    assert join(TRIGGER, below_zero, EXPECTED, NOW).camera_id == "left"


def test_one_reject_rejects_with_its_own_numbers() -> None:
    bad = view("top", 1.5)
    joined = join(TRIGGER, [GOOD[0], GOOD[1], bad], EXPECTED, NOW)
    assert joined == replace(bad, views=(GOOD[0], GOOD[1], bad))


def test_of_several_rejects_the_worst_is_told() -> None:
    views = [view("left", 1.5), view("right", 9.0, 5.0), GOOD[2]]
    assert join(TRIGGER, views, EXPECTED, NOW).camera_id == "right"


def test_a_reject_is_told_before_a_doubt() -> None:
    views = [doubt("left", Reason.NO_FRAME), view("right", 1.0), GOOD[2]]
    joined = join(TRIGGER, views, EXPECTED, NOW)
    assert (joined.verdict, joined.camera_id) == (Verdict.REJECT, "right")
    assert joined.views[0].reason is Reason.NO_FRAME
    assert join(TRIGGER, views[1:2], EXPECTED, NOW).verdict is Verdict.REJECT
    assert join(TRIGGER, [views[1], views[1]], EXPECTED, NOW).verdict is Verdict.REJECT
    assert join(TRIGGER, views, EXPECTED, TRIGGER.deadline_mono_ns + 1).verdict == "reject"


def test_a_doubt_is_told_before_a_pass_in_the_order_of_the_settings() -> None:
    views = [doubt("top", Reason.STALE_FRAME), doubt("right", Reason.NOT_FINITE), GOOD[0]]
    joined = join(TRIGGER, views, EXPECTED, NOW)
    assert (joined.verdict, joined.reason) == (Verdict.UNKNOWN, Reason.NOT_FINITE)
    assert [v.camera_id for v in joined.views] == list(EXPECTED)


def test_a_view_that_is_missing_is_listed_as_such() -> None:
    joined = join(TRIGGER, [GOOD[2], GOOD[0]], EXPECTED, NOW)
    assert (joined.verdict, joined.reason) == (Verdict.UNKNOWN, Reason.VIEW_MISSING)
    assert (joined.camera_id, joined.trigger) == ("right", TRIGGER)
    assert [v.reason for v in joined.views] == [Reason.OK, Reason.VIEW_MISSING, Reason.OK]


def test_a_view_that_speaks_twice_contradicts_itself() -> None:
    joined = join(TRIGGER, [*GOOD, GOOD[0]], EXPECTED, NOW)
    assert (joined.verdict, joined.reason) == (Verdict.UNKNOWN, Reason.INCONSISTENT)
    assert joined.camera_id == "left"
    assert joined.views[0].reason is Reason.INCONSISTENT


def test_a_reject_of_another_part_is_no_reject_of_this_one() -> None:
    foreign = replace(view("left", 5.0), trigger=replace(TRIGGER, trigger_id="before"))
    joined = join(TRIGGER, [foreign, *GOOD], EXPECTED, NOW)
    assert (joined.verdict, joined.reason) == (Verdict.UNKNOWN, Reason.INCONSISTENT)
    assert len(joined.views) == 3


def test_a_camera_that_nobody_asked_is_not_listened_to_and_not_overheard() -> None:
    joined = join(TRIGGER, [view("bottom", 5.0), *GOOD], EXPECTED, NOW)
    assert (joined.verdict, joined.reason) == (Verdict.UNKNOWN, Reason.INCONSISTENT)
    assert [v.camera_id for v in joined.views] == list(EXPECTED)


def test_the_earliest_deadline_counts_and_its_last_moment_too() -> None:
    early = replace(GOOD[0], trigger=replace(TRIGGER, deadline_mono_ns=NOW + 10))
    views = [early, *GOOD[1:]]
    assert join(TRIGGER, views, EXPECTED, NOW + 10).verdict is Verdict.PASS
    late = join(TRIGGER, views, EXPECTED, NOW + 11)
    assert (late.verdict, late.reason) == (Verdict.UNKNOWN, Reason.DEADLINE_MISSED)
    assert join(TRIGGER, GOOD, EXPECTED, NOW + 100).verdict is Verdict.PASS
    assert join(TRIGGER, GOOD, EXPECTED, NOW + 101).reason is Reason.DEADLINE_MISSED


def test_the_joined_decision_answers_the_trigger_that_asked() -> None:
    early = replace(GOOD[1], trigger=replace(TRIGGER, deadline_mono_ns=NOW + 10))
    assert join(TRIGGER, [GOOD[0], early, GOOD[2]], EXPECTED, NOW).trigger is TRIGGER
    bad = replace(view("left", 2.0), trigger=early.trigger)
    assert join(TRIGGER, [bad, *GOOD[1:]], EXPECTED, NOW).trigger is TRIGGER


@pytest.mark.parametrize("decisions", [[], GOOD])
def test_nobody_expected_proves_nothing(decisions: list[Decision]) -> None:
    joined = join(TRIGGER, decisions, (), NOW)
    assert (joined.verdict, joined.reason) == (Verdict.UNKNOWN, Reason.VIEW_MISSING)


def test_a_camera_expected_twice_cannot_be_satisfied() -> None:
    joined = join(TRIGGER, [GOOD[0]], ("left", "left"), NOW)
    assert (joined.verdict, joined.reason) == (Verdict.UNKNOWN, Reason.INCONSISTENT)
