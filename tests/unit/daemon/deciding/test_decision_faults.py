"""Flawless evidence passes; with any fault put into it, alone or among others, it never does.

Each case goes the whole way: assessed, decided per view, joined, and let out by an armed line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from metal_edge.daemon.deciding.decision import Evidence, Reason, Rules, assess, decide, join
from metal_edge.daemon.deciding.regions import RegionRules
from metal_edge.daemon.deciding.transitions import State, release
from metal_edge.domain import Decision, Frame, Inspection, Trigger, Verdict

NOW = 10_000_000_000
MS = 1_000_000
AREA = (0, 0, 8, 6)
TRIGGER = Trigger("t1", "p1", NOW - 100 * MS, NOW + 400 * MS)
MASK = np.array([[False, True, True, True]] * 3)
IGNORED = (1, 0)


def flawless_map() -> NDArray[np.float32]:
    heat = np.full((3, 4), 0.1, np.float32)
    heat[0, 0] = 0.9  # ignored
    heat[2, 3] = 0.7  # too small
    return heat


@dataclass
class View:
    """One camera's work, before it is looked at; faults change it."""

    camera_id: str
    heat: NDArray[np.float32] = field(default_factory=flawless_map)
    said: float = float(np.float32(0.9))
    rules: Rules = field(
        default_factory=lambda: Rules(
            0.5, 1000 * MS, (8, 6), RegionRules(AREA, (3, 4), MASK, 5, 0.5), 0.0
        )
    )
    area: tuple[int, int, int, int] = AREA
    size: tuple[int, int] = (8, 6)
    exposed: int = NOW - 50 * MS
    requested: int | None = NOW - 60 * MS
    frame_from: str = ""
    fault: Reason | None = None
    trigger: Trigger = TRIGGER
    now: int = NOW
    changes: list[Callable[[Evidence, Rules], tuple[Evidence, Rules]]] = field(default_factory=list)

    def decide(self) -> Decision:
        image = np.zeros((self.size[1], self.size[0], 3), np.uint8)
        camera_id = self.frame_from or self.camera_id
        frame = Frame(image, 1, camera_id, "f", self.exposed, 1_700_000_000_000_000_000)
        inspection = Inspection(self.heat, self.said)
        evidence = Evidence(
            frame=frame,
            inspection=inspection,
            assessment=assess(inspection, self.rules, self.area),
            camera_id=self.camera_id,
            fault=self.fault,
            requested_mono_ns=self.requested,
        )
        rules = self.rules
        for change in self.changes:
            evidence, rules = change(evidence, rules)
        return decide(self.trigger, evidence, rules, self.now)


Fault = Callable[[View], None]


def poisoned(value: float, rows: slice | int, columns: slice | int) -> Fault:
    def fault(view: View) -> None:
        if view.heat.shape == MASK.shape:  # not where another fault took the map away
            view.heat = view.heat.copy()
            view.heat[rows, columns] = value

    return fault


def with_(**values: object) -> Fault:
    def fault(view: View) -> None:
        for name, value in values.items():
            assert hasattr(view, name)
            setattr(view, name, value)

    return fault


def with_rules(**values: object) -> Fault:
    def fault(view: View) -> None:
        view.rules = replace(view.rules, **values)  # type: ignore[arg-type]

    return fault


def with_regions(**values: object) -> Fault:
    def fault(view: View) -> None:
        assert view.rules.regions is not None
        regions = replace(view.rules.regions, **values)  # type: ignore[arg-type]
        view.rules = replace(view.rules, regions=regions)

    return fault


def afterwards(change: Callable[[Evidence, Rules], tuple[Evidence, Rules]]) -> Fault:
    return lambda view: view.changes.append(change)


COPY = Inspection(flawless_map(), 0.9)
FAULTS: dict[str, Fault] = {
    "nan": poisoned(math.nan, 1, 1),
    "nan where it is ignored": poisoned(math.nan, *IGNORED),
    "infinite where it is ignored": poisoned(math.inf, *IGNORED),
    "minus infinity": poisoned(-math.inf, 2, 2),
    "a large hot area": poisoned(0.8, slice(1, 3), slice(1, 3)),
    "score not a number": with_(said=math.nan),
    "score minus infinity": with_(said=-math.inf),
    "score of another map": with_(said=0.2),
    "map of another shape": with_(heat=np.full((3, 3), 0.1, np.float32)),
    "map empty": with_(heat=np.empty((0, 4), np.float32)),
    "map flat": with_(heat=np.full(12, 0.1, np.float32)),
    "map over another area": with_(area=(0, 0, 4, 3)),
    "no threshold": with_rules(threshold=None),
    "threshold not a number": with_rules(threshold=math.nan),
    "threshold infinite": with_rules(threshold=math.inf),
    "nobody knows the reduction": with_rules(score_share=None),
    "another reduction": with_rules(score_share=0.5),
    "mask emptied": with_regions(inspected=np.zeros((3, 4), bool)),
    "mask of another shape": with_regions(inspected=np.ones((4, 3), bool), shape=(4, 3)),
    "wrong size": with_(size=(6, 8)),
    "stale": with_(exposed=NOW - 1001 * MS, requested=None),
    "from the future": with_(exposed=NOW + 1),
    "older than the request": with_(requested=NOW - 40 * MS),
    "another camera's frame": with_(frame_from="other"),
    "late": with_(now=NOW + 401 * MS, exposed=NOW + 390 * MS, requested=NOW + 380 * MS),
    "a deadline of its own": with_(trigger=replace(TRIGGER, deadline_mono_ns=NOW - 1)),
    **{f"fault {r}": with_(fault=r) for r in Reason if r is not Reason.OK},
    "no frame": afterwards(lambda e, r: (replace(e, frame=None), r)),
    "no inspection": afterwards(lambda e, r: (replace(e, inspection=None), r)),
    "no assessment": afterwards(lambda e, r: (replace(e, assessment=None), r)),
    "assessment of another map": afterwards(lambda e, r: (replace(e, inspection=COPY), r)),
    "threshold of another bundle": afterwards(lambda e, r: (e, replace(r, threshold=0.6))),
    "rules of another recipe": afterwards(lambda e, r: (e, replace(r))),
}
NAMES = ["cam0", "cam1", "cam2"]


def outcome(views: list[View], expected: list[str]) -> Decision:
    joined = join(TRIGGER, [view.decide() for view in views], expected, NOW)
    return release(State.ARMED, joined)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_flawless_views_pass(count: int) -> None:
    """Without this, nothing below would mean anything."""
    decision = outcome([View(name) for name in NAMES[:count]], NAMES[:count])
    assert (decision.verdict, decision.reason) == (Verdict.PASS, Reason.OK)
    assert [view.camera_id for view in decision.views] == NAMES[:count]


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_alone_is_enough(name: str) -> None:
    view = View("cam0")
    FAULTS[name](view)
    for decision in (view.decide(), outcome([view, View("cam1")], NAMES[:2])):
        assert decision.verdict is not Verdict.PASS
        assert decision.reason is not Reason.OK


faults = st.lists(st.sampled_from(sorted(FAULTS)), max_size=3)


@given(st.lists(faults, min_size=1, max_size=3), st.data())
def test_no_faults_redeem_each_other(injected: list[list[str]], data: st.DataObject) -> None:
    expected = NAMES[: len(injected)]
    views = [View(name) for name in expected]
    for view, names in zip(views, injected, strict=True):
        for name in names:
            FAULTS[name](view)
    shuffled = data.draw(st.permutations(views))
    decision = outcome(shuffled, expected)
    assert (decision.verdict is Verdict.PASS) == (not any(injected))
    assert (decision.reason == Reason.OK) == (not any(injected))


JOINING: dict[str, Callable[[list[Decision]], list[Decision]]] = {
    "one missing": lambda views: views[1:],
    "all missing": lambda views: [],
    "one twice": lambda views: [*views, views[0]],
    "one instead of another": lambda views: [*views[1:], *views[1:]],
    "one nobody asked for": lambda views: [*views, View("cam9").decide()],
    "one of another trigger": lambda views: [
        replace(views[0], trigger=replace(TRIGGER, trigger_id="t0")),
        *views[1:],
    ],
    "one of another part": lambda views: [
        replace(views[0], trigger=replace(TRIGGER, part_id="p0")),
        *views[1:],
    ],
    "one of another part besides": lambda views: [
        replace(views[0], trigger=replace(TRIGGER, part_id="p0")),
        *views,
    ],
    "one without a name": lambda views: [replace(views[0], camera_id=None), *views[1:]],
    "one with an earlier deadline": lambda views: [
        *views[:-1],
        replace(views[-1], trigger=replace(TRIGGER, deadline_mono_ns=NOW - 1)),
    ],
    "one unknown": lambda views: [
        replace(views[0], verdict=Verdict.UNKNOWN, reason=Reason.NO_FRAME),
        *views[1:],
    ],
    "one rejected": lambda views: [
        replace(views[0], verdict=Verdict.REJECT, reason=Reason.SCORE),
        *views[1:],
    ],
}
REMOVING = {"one missing", "all missing", "one instead of another"}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", JOINING)
def test_views_that_do_not_fit_together_never_pass(name: str, count: int) -> None:
    views = [View(camera).decide() for camera in NAMES[:count]]
    assert join(TRIGGER, views, NAMES[:count], NOW).verdict is Verdict.PASS
    decision = join(TRIGGER, JOINING[name](views), NAMES[:count], NOW)
    assert decision.verdict is not Verdict.PASS
    assert decision.reason is not Reason.OK


@given(st.lists(st.sampled_from(sorted(JOINING)), min_size=1, max_size=3), st.integers(1, 3))
def test_misfits_do_not_redeem_each_other(names: list[str], count: int) -> None:
    views = [View(camera).decide() for camera in NAMES[:count]]
    # What takes views away comes first, or it could take away another misfit.
    for name in sorted(names, key=lambda name: name not in REMOVING):
        if views:
            views = JOINING[name](views)
    assert join(TRIGGER, views, NAMES[:count], NOW).verdict is not Verdict.PASS
