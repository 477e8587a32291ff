"""The deciding loop in triggered mode: one verdict per trigger, whatever happens around it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from support.broker import wait_until
from support.line_rig import BAD, GOOD, Rig, ScriptedCamera, SteppingClock

from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EarlyFrameError,
    TornFrameError,
)
from metal_edge.daemon.clock import SystemClock

HOUR_NS = 3_600_000_000_000


def test_a_good_part_passes_and_a_bad_one_is_rejected() -> None:
    with Rig() as rig:
        rig.camera.script.put(GOOD)
        rig.trigger("t1", "left")
        rig.verdicts(1)
        rig.camera.script.put(BAD)
        rig.trigger("t2", "right")
        assert rig.verdicts(2) == [
            ("t1", "pass", "ok"),
            ("t2", "reject", "score_at_or_above_threshold"),
        ]
        assert rig.camera.triggered == ["left", "right"]
        assert [d["part_id"] for d in rig.decisions] == ["left", "right"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (CameraError("the cable is out"), "camera_failed"),
        (TornFrameError("packets are missing"), "torn_frame"),
        (EarlyFrameError("the wire was quicker"), "stale_frame"),
        (CameraTimeoutError("nothing came"), "no_frame"),
        (RuntimeError("a mistake in a camera"), "camera_failed"),
        (0, "black_frame"),
        (255, "saturated_frame"),
    ],
)
def test_a_part_without_a_usable_frame_is_unknown_and_the_line_goes_on(
    fault: Any, reason: str
) -> None:
    with Rig() as rig:
        rig.camera.script.put(fault)
        rig.trigger("t1")
        rig.verdicts(1)
        rig.trigger("t2")
        assert rig.verdicts(2) == [("t1", "unknown", reason), ("t2", "pass", "ok")]


@pytest.mark.parametrize("error", [ValueError("shape"), RuntimeError("a mistake in a back end")])
def test_a_part_whose_inference_fails_is_unknown(error: Exception) -> None:
    with Rig() as rig:
        rig.runner.error = error
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "unknown", "inference_failed")]


def test_a_frame_older_than_the_trigger_shows_another_part() -> None:
    with Rig() as rig:
        rig.camera.script.put(rig.camera.frame(GOOD))
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "unknown", "stale_frame")]


def test_what_fails_three_times_holds_the_line_until_it_was_seen_to_work() -> None:
    with Rig() as rig:
        for number in range(3):
            rig.camera.script.put(CameraError("the cable is out"))
            rig.trigger(f"t{number}")
            rig.verdicts(number + 1)
        beat = rig.beat(lambda b: not b["healthy"], "an unhealthy heartbeat")
        assert (beat["state"], beat["problems"]) == ("held", ["camera"])
        rig.trigger("t3")
        assert rig.verdicts(4)[3] == ("t3", "unknown", "line_held")
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat")
        rig.trigger("t4")
        assert rig.verdicts(5)[4] == ("t4", "pass", "ok")
        assert [s["status"] for s in rig.broker.states] == ["degraded", "online"]


def test_what_is_wrong_around_the_line_degrades_it_and_parts_still_pass() -> None:
    with Rig() as rig:
        rig.broker.problems = ("outbox: disk full",)
        beat = rig.beat(lambda b: b["problems"], "a heartbeat with a problem")
        assert (beat["state"], beat["healthy"]) == ("degraded", True)
        rig.trigger("t1")
        assert rig.verdicts(1) == [("t1", "pass", "ok")]
        assert rig.broker.states[-1]["problems"] == ["outbox: disk full"]


def test_the_heart_beats_at_its_own_pace_when_nothing_else_happens() -> None:
    """Not only as often as the loop looks for an order to stop."""
    with Rig(heartbeat_hz=50) as rig:
        wait_until(lambda: len(rig.broker.beats) >= 40, "forty heartbeats", 3)
        assert [b["seq"] for b in rig.broker.beats[:40]] == list(range(1, 41))


def test_pictures_that_show_no_part_degrade_the_line_until_one_does() -> None:
    """They do not hold it: each is refused anyway, and a wired line could not look again."""
    with Rig() as rig:
        for number in range(3):
            rig.camera.script.put(0)
            rig.trigger(f"t{number}")
            rig.verdicts(number + 1)
        beat = rig.beat(lambda b: b["problems"], "a problem")
        assert (beat["problems"], beat["healthy"]) == (["picture"], True)
        rig.trigger("t3")
        assert rig.verdicts(4)[3] == ("t3", "pass", "ok")
        rig.beat(lambda b: not b["problems"], "no problem")


def test_a_trigger_wakes_the_line_at_once() -> None:
    """Between two heartbeats of one a second; waiting for the next look would take longer."""
    with Rig(heartbeat_hz=1) as rig:
        for number in range(20):
            rig.trigger(f"t{number}")
            rig.verdicts(number + 1)
        waited = [d["latency_ms"]["grab"] for d in rig.decisions]
        assert len(rig.broker.beats) <= 2, f"20 parts took over a second: {waited}"


def test_a_stalled_camera_holds_up_neither_heart_nor_verdict() -> None:
    with Rig() as rig:
        stuck = threading.Event()
        rig.camera.script.put(stuck)
        rig.trigger("t1", deadline_ms=300)
        rig.beat(lambda b: True, "a heartbeat while the camera hangs")
        assert rig.decisions == []
        assert rig.verdicts(1) == [("t1", "unknown", "no_frame")]
        decision = rig.decisions[0]
        assert decision["t_publish_ns"] >= decision["deadline_ns"] - 1_000_000
        rig.trigger("t2", deadline_ms=200)
        assert rig.verdicts(2)[1] == ("t2", "unknown", "no_frame")
        stuck.set()
        rig.trigger("t3")
        assert rig.verdicts(3)[2] == ("t3", "pass", "ok")


def test_what_a_stalled_camera_gives_too_late_is_nobodys_picture() -> None:
    """It comes while the next part waits for its own, and is new enough to be taken for it."""
    with Rig() as rig:
        stuck, own = threading.Event(), threading.Event()
        for item in (stuck, BAD, own):
            rig.camera.script.put(item)
        rig.trigger("t1", deadline_ms=100)
        rig.verdicts(1)
        rig.trigger("t2")
        rig.beat(lambda b: b["queue_depth"] == 0, "the second part to be in hand")
        stuck.set()
        wait_until(rig.camera.script.empty, "the late picture to be out of the way")
        rig.beat(lambda b: b["last_decision_seq"] == 1, "still only the first verdict")
        own.set()
        assert rig.verdicts(2)[1] == ("t2", "pass", "ok")


def test_a_part_that_is_inspected_too_late_does_not_pass() -> None:
    with Rig() as rig:
        rig.runner.gate = threading.Event()
        rig.trigger("t1", deadline_ms=100)
        assert rig.runner.inside.wait(5)
        end_ns = rig.clock.mono_ns() + 100_000_000
        wait_until(lambda: rig.clock.mono_ns() > end_ns, "the deadline")
        rig.runner.gate.set()
        assert rig.verdicts(1) == [("t1", "unknown", "deadline_missed")]


def test_the_gate_ends_the_deadline_and_goes_with_the_decision() -> None:
    gate = {"offset_ms": 600, "margin_ms": 400, "encoder_counts": 1000}
    with Rig(gate=gate) as rig:
        rig.trigger("t1", encoder=4_294_967_000)
        rig.verdicts(1)
        decision = rig.decisions[0]
        told = decision["gate"]
        assert (told["offset_ms"], told["encoder_counts"]) == (600, 1000)
        assert told["encoder_gate"] == 4_294_968_000
        assert decision["encoder"] == 4_294_967_000
        assert told["t_gate_ns"] - decision["deadline_ns"] == 400_000_000
        rig.camera.script.put(threading.Event())
        rig.trigger("t2")
        assert rig.verdicts(2)[1] == ("t2", "unknown", "no_frame")
        decision = rig.decisions[1]
        assert decision["deadline_ns"] - 1_000_000 <= decision["t_publish_ns"]
        assert decision["t_publish_ns"] < decision["gate"]["t_gate_ns"]


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS])
def test_a_step_of_the_wall_clock_changes_no_budget_and_is_told(
    step_ns: int, caplog: pytest.LogCaptureFixture
) -> None:
    clock = SteppingClock()
    with Rig(clock=clock) as rig:
        rig.runner.gate = threading.Event()
        rig.trigger("t1", deadline_ms=2000)
        assert rig.runner.inside.wait(5)
        clock.step_ns = step_ns
        rig.runner.gate.set()
        assert rig.verdicts(1) == [("t1", "pass", "ok")]
        rig.trigger("t2", deadline_ms=2000)
        assert rig.verdicts(2)[1] == ("t2", "pass", "ok")
        deadline_ns, published_ns = (rig.decisions[1][k] for k in ("deadline_ns", "t_publish_ns"))
        assert 0 < deadline_ns - published_ns <= 2_000_000_000
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat")
        hours = f"the wall clock stepped by {step_ns / 1e9:+.1f} s"
        wait_until(lambda: hours in caplog.text, "the step told")


def test_stopping_finishes_the_part_in_hand_and_answers_those_that_wait() -> None:
    with Rig() as rig:
        rig.runner.gate = threading.Event()
        for number in range(3):
            rig.trigger(f"t{number}")
        assert rig.runner.inside.wait(5)
        rig.stop.request()
        rig.runner.gate.set()
        rig.join()
        assert rig.verdicts(3) == [
            ("t0", "pass", "ok"),
            ("t1", "unknown", "shutting_down"),
            ("t2", "unknown", "shutting_down"),
        ]
        rig.trigger("t3")
        assert rig.verdicts(4)[3] == ("t3", "unknown", "shutting_down")


def test_stopping_waits_a_little_for_the_frame_of_the_part_in_hand() -> None:
    rig = Rig()
    rig.camera.always = None
    with rig:
        rig.trigger("t0")
        wait_until(lambda: rig.camera.triggered, "the trigger")
        rig.stop.request()
        rig.beat(lambda b: True, "a heartbeat after the order to stop")
        rig.camera.script.put(GOOD)
        rig.join()
        assert rig.verdicts(1) == [("t0", "pass", "ok")]


def test_no_thread_is_left_of_a_line_whose_camera_only_was_silent() -> None:
    with Rig({"quiet": ScriptedCamera("quiet", SystemClock())}) as rig:
        rig.trigger("t0")
        wait_until(lambda: rig.camera.triggered, "the trigger")
        rig.end()
        assert "grab-quiet" not in [thread.name for thread in threading.enumerate()]


def test_stopping_does_not_wait_for_a_camera_that_hangs() -> None:
    with Rig() as rig:
        stuck = threading.Event()
        rig.camera.script.put(stuck)
        rig.trigger("t0")
        wait_until(lambda: rig.camera.triggered, "the trigger")
        rig.end()
        assert rig.verdicts(1) == [("t0", "unknown", "shutting_down")]
        stuck.set()


def test_a_mistake_of_ours_ends_the_line_and_those_that_wait_hear_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()

    def broken(*unused: object) -> None:
        raise ZeroDivisionError

    ended: list[BaseException] = []
    monkeypatch.setattr(rig.line._inspector, "inspect", broken)
    monkeypatch.setattr(threading, "excepthook", lambda hook: ended.append(hook.exc_value))
    rig.trigger("t0")
    rig.trigger("t1")
    with rig:
        rig.join()
    assert [type(error) for error in ended] == [ZeroDivisionError]
    assert rig.verdicts(1) == [("t1", "unknown", "shutting_down")]


def test_triggers_in_a_row_are_answered_in_order() -> None:
    with Rig() as rig:
        for number in range(6):
            rig.trigger(f"t{number}")
        assert [v[0] for v in rig.verdicts(6)] == [f"t{number}" for number in range(6)]
        assert [d["seq"] for d in rig.decisions] == [1, 2, 3, 4, 5, 6]


def test_a_trigger_that_waited_until_its_part_had_gone_gets_no_picture() -> None:
    """Behind the inference of the part before: the camera would show the next one."""
    with Rig(decision={"max_exposure_delay_ms": 300}) as rig:
        rig.runner.gate = threading.Event()
        rig.trigger("t1", "first")
        assert rig.runner.inside.wait(5)
        for late in ("t2", "t3", "t4"):
            rig.trigger(late, "late")
        end_ns = rig.clock.mono_ns() + 300_000_000
        wait_until(lambda: rig.clock.mono_ns() > end_ns, "the parts to go")
        rig.runner.gate.set()
        unknown = [(late, "unknown", "stale_frame") for late in ("t2", "t3", "t4")]
        assert rig.verdicts(4) == [("t1", "pass", "ok"), *unknown]
        assert rig.camera.triggered == ["first"]
        assert rig.beat(lambda b: True, "a heartbeat")["healthy"], "the camera is not to blame"
        rig.trigger("t5", "last")
        assert rig.verdicts(5)[4] == ("t5", "pass", "ok")


def test_triggers_that_waited_beyond_their_deadline_are_answered_without_a_look() -> None:
    """A backlog is no fault of the camera, and must not hold the line."""
    with Rig() as rig:
        rig.runner.gate = threading.Event()
        rig.trigger("t1", "first")
        assert rig.runner.inside.wait(5)
        for late in ("t2", "t3", "t4"):
            rig.trigger(late, "late", deadline_ms=50)
        end_ns = rig.clock.mono_ns() + 50_000_000
        wait_until(lambda: rig.clock.mono_ns() > end_ns, "the deadlines")
        rig.runner.gate.set()
        unknown = [(late, "unknown", "deadline_missed") for late in ("t2", "t3", "t4")]
        assert rig.verdicts(4)[1:] == unknown
        assert rig.camera.triggered == ["first"]
        assert rig.beat(lambda b: True, "a heartbeat")["healthy"], "the camera is not to blame"


def test_a_camera_that_is_busy_until_the_part_had_gone_is_not_triggered() -> None:
    with Rig(decision={"max_exposure_delay_ms": 300}) as rig:
        stuck = threading.Event()
        rig.camera.script.put(stuck)
        rig.trigger("t1", "first", deadline_ms=50)
        rig.verdicts(1)
        rig.trigger("t2", "second")
        end_ns = rig.clock.mono_ns() + 300_000_000
        wait_until(lambda: rig.clock.mono_ns() > end_ns, "the second part to go")
        stuck.set()
        assert rig.verdicts(2)[1] == ("t2", "unknown", "stale_frame")
        assert rig.camera.triggered == ["first"]
