"""Several cameras that look at the same part."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.broker import wait_until
from support.line_rig import BAD, GOOD, Rig, ScriptedCamera

from metal_edge.daemon.cameras import CameraError
from metal_edge.daemon.clock import SystemClock
from metal_edge.domain import Frame

VIEWS = ("top", "left", "right")


def rig_of_three(**sections: Any) -> Rig:
    clock = SystemClock()
    return Rig({name: ScriptedCamera(name, clock, GOOD) for name in VIEWS}, clock, **sections)


def test_a_part_passes_when_every_view_passes() -> None:
    with rig_of_three() as rig:
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "pass", "ok")]
        views = rig.decisions[0]["views"]
        assert [(v["camera_id"], v["verdict"], v["frame_id"]) for v in views] == [
            (name, "pass", f"{name}-1") for name in VIEWS
        ]
        assert len(rig.decisions) == 1


@pytest.mark.parametrize("bad", VIEWS)
def test_one_view_that_rejects_is_enough(bad: str) -> None:
    with rig_of_three() as rig:
        rig.cameras[bad].script.put(BAD)
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "reject", "score_at_or_above_threshold")]
        assert rig.decisions[0]["camera_id"] == bad


@pytest.mark.parametrize("silent", VIEWS)
def test_a_view_that_hangs_costs_the_deadline_and_holds_up_no_other(silent: str) -> None:
    with rig_of_three() as rig:
        stuck = threading.Event()
        rig.cameras[silent].script.put(stuck)
        rig.trigger("t1", deadline_ms=300)
        rig.beat(lambda b: True, "a heartbeat while one camera hangs")
        others = [rig.runners[name] for name in VIEWS if name != silent]
        assert all(runner.inside.wait(5) for runner in others)
        assert rig.decisions == []
        assert rig.verdicts(1) == [("t1", "unknown", "view_missing")]
        decision = rig.decisions[0]
        assert decision["camera_id"] == silent
        assert {v["camera_id"]: v["verdict"] for v in decision["views"]} == {
            name: "unknown" if name == silent else "pass" for name in VIEWS
        }
        stuck.set()


def test_a_frame_that_grew_old_while_another_was_waited_for_proves_nothing() -> None:
    with rig_of_three(max_age_ms=100) as rig:
        late = threading.Event()
        rig.cameras["left"].script.put(late)
        rig.trigger("t1")
        assert rig.runners["top"].inside.wait(5)
        until_ns = rig.clock.mono_ns() + 100_000_000
        wait_until(lambda: rig.clock.mono_ns() > until_ns, "the first frame to be old")
        late.set()
        assert rig.verdicts(1) == [("t1", "unknown", "stale_frame")]


def test_all_cameras_are_triggered_before_any_frame_is_waited_for() -> None:
    """Each camera gives its frame only when all the others have been triggered."""
    rig = rig_of_three()
    together = threading.Barrier(len(VIEWS))

    class Waiting(ScriptedCamera):
        def grab(self, timeout_s: float) -> Frame:
            together.wait(5)
            return super().grab(timeout_s)

    for camera in rig.cameras.values():
        camera.__class__ = Waiting
    with rig:
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "pass", "ok")]


def test_each_view_is_judged_by_its_own_model() -> None:
    rig = rig_of_three()
    rig.runners["left"].bias = 0.5
    with rig:
        rig.trigger("t1")
        rig.verdicts(1)
        scores = {v["camera_id"]: v["score"] for v in rig.decisions[0]["views"]}
        assert scores["left"] == pytest.approx(scores["top"] + 0.5)
        assert (rig.decisions[0]["verdict"], rig.decisions[0]["camera_id"]) == ("reject", "left")


def test_a_view_that_fails_again_and_again_is_named() -> None:
    with rig_of_three() as rig:
        for number in range(3):
            rig.cameras["right"].script.put(CameraError("the cable is out"))
            rig.trigger(f"t{number}")
            rig.verdicts(number + 1)
        assert rig.beat(lambda b: b["problems"], "a problem")["problems"] == ["camera: right"]
        assert rig.verdicts(3)[2] == ("t2", "unknown", "camera_failed")
