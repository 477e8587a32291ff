"""Cameras with a pace of their own: free run, and exposures of a wired trigger."""

from __future__ import annotations

import threading
from typing import Any

from support.broker import wait_until
from support.line_rig import BAD, GOOD, Rig

from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EndOfStreamError,
    FrameOverflowError,
    TornFrameError,
)


def paced(mode: str, timeout_s: float = 1, **sections: object) -> Rig:
    """A line whose camera gives nothing but what the test puts into it."""
    rig = Rig(camera={"mode": mode, "timeout_s": timeout_s}, **sections)
    rig.camera.always = None
    return rig


def hardware(timeout_s: float = 1, **sections: object) -> Rig:
    return paced("hardware", timeout_s, **sections)


def seen(rig: Rig, *seqs: int, level: int = GOOD) -> None:
    for seq in seqs:
        rig.camera.script.put(rig.camera.frame(level, seq))


def test_every_exposure_gets_one_verdict_in_order() -> None:
    with hardware() as rig:
        for seq, level in ((7, GOOD), (8, BAD), (9, GOOD)):
            rig.camera.script.put(rig.camera.frame(level, seq))
        assert rig.verdicts(3) == [
            ("hw-1", "pass", "ok"),
            ("hw-2", "reject", "score_at_or_above_threshold"),
            ("hw-3", "pass", "ok"),
        ]
        assert [d["frame_id"] for d in rig.decisions] == ["cam0-7", "cam0-8", "cam0-9"]
        assert rig.camera.triggered == []


def test_an_exposure_without_a_frame_gets_its_verdict_in_its_place() -> None:
    with hardware() as rig:
        seen(rig, 1, 4)
        assert rig.verdicts(4) == [
            ("hw-1", "pass", "ok"),
            ("hw-2", "unknown", "lost_trigger"),
            ("hw-3", "unknown", "lost_trigger"),
            ("hw-4", "pass", "ok"),
        ]
        rig.beat(lambda b: b["triggers_lost"] == 2, "two lost triggers in the heartbeat")


def test_a_torn_frame_is_one_exposure() -> None:
    with hardware() as rig:
        seen(rig, 1)
        rig.camera.script.put(TornFrameError("packets are missing", seq=3))
        seen(rig, 4)
        rig.camera.script.put(TornFrameError("packets are missing"))
        seen(rig, 6)
        assert rig.verdicts(6) == [
            ("hw-1", "pass", "ok"),
            ("hw-2", "unknown", "lost_trigger"),
            ("hw-3", "unknown", "torn_frame"),
            ("hw-4", "pass", "ok"),
            ("hw-5", "unknown", "torn_frame"),
            ("hw-6", "pass", "ok"),
        ]


def test_a_counter_that_began_anew_is_one_unknown_not_thousands() -> None:
    with hardware() as rig:
        seen(rig, 1000, 1, 2, 5_000_000, 5_000_001)
        assert [(v, why) for _, v, why in rig.verdicts(5)] == [
            ("pass", "ok"),
            ("unknown", "lost_trigger"),
            ("pass", "ok"),
            ("unknown", "lost_trigger"),
            ("pass", "ok"),
        ]


def test_silence_is_no_part_and_no_fault() -> None:
    with hardware(timeout_s=0.05) as rig:
        rig.camera.script.put(CameraTimeoutError("nothing came"))
        beat = rig.beat(lambda b: b["seq"] > 12, "a dozen heartbeats")
        assert (beat["healthy"], rig.decisions) == (True, [])
        seen(rig, 1)
        assert rig.verdicts(1) == [("hw-1", "pass", "ok")]


def test_a_broken_camera_holds_the_line_and_shifts_no_verdict() -> None:
    """After a break nobody knows how many exposures it cost: the first frame is `unknown`."""
    with hardware() as rig:
        seen(rig, 1)
        rig.verdicts(1)
        for _ in range(20):
            rig.camera.script.put(CameraError("the cable is out"))
        beat = rig.beat(lambda b: not b["healthy"], "an unhealthy heartbeat")
        assert (beat["problems"], len(rig.decisions)) == (["camera"], 1)
        seen(rig, 2)
        wait_until(lambda: len(rig.decisions) == 2, "the verdict on the first frame after it")
        assert rig.verdicts(2)[1] == ("hw-2", "unknown", "lost_trigger")
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat")
        seen(rig, 3)
        assert rig.verdicts(3)[2] == ("hw-3", "pass", "ok")


def test_a_camera_that_is_back_needs_no_part_to_show_it() -> None:
    """A PLC that has stopped its line sends none."""
    with hardware(timeout_s=0.05) as rig:
        rig.camera.script.put(CameraError("the cable is out"))
        rig.beat(lambda b: not b["healthy"], "an unhealthy heartbeat")
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat")
        assert rig.decisions == []


def test_exposures_that_overflowed_are_found_by_their_gap() -> None:
    with hardware() as rig:
        seen(rig, 1)
        rig.camera.script.put(FrameOverflowError("eight were waiting"))
        seen(rig, 3)
        assert [why for _, _, why in rig.verdicts(3)] == ["ok", "lost_trigger", "ok"]


def test_exposures_too_old_to_matter_are_not_inspected() -> None:
    """A backlog is worked off by saying so, or every later part would be late as well."""
    with hardware(decision={"deadline_ms": 400}) as rig:
        rig.runner.gate = threading.Event()
        seen(rig, 1)
        assert rig.runner.inside.wait(5)
        rig.runner.inside.clear()
        rig.camera.script.put(rig.camera.frame(GOOD, 2, age_ns=500_000_000))
        rig.runner.gate.set()
        assert rig.verdicts(2)[1] == ("hw-2", "unknown", "deadline_missed")
        assert not rig.runner.inside.is_set()


def test_disarmed_exposures_are_answered_without_a_look() -> None:
    with hardware() as rig:
        rig.command("disarm")
        seen(rig, 1)
        assert rig.verdicts(1) == [("hw-1", "unknown", "disarmed")]
        assert not rig.runner.inside.is_set()


def test_stopping_answers_the_exposures_that_wait_in_the_camera() -> None:
    with hardware() as rig:
        rig.runner.gate = threading.Event()
        seen(rig, 1, 2, 4)
        assert rig.runner.inside.wait(5)
        rig.stop.request()
        rig.runner.gate.set()
        rig.join()
        assert rig.verdicts(4) == [
            ("hw-1", "pass", "ok"),
            ("hw-2", "unknown", "shutting_down"),
            ("hw-3", "unknown", "lost_trigger"),
            ("hw-4", "unknown", "shutting_down"),
        ]
        assert len(rig.decisions) == 4


def test_free_run_asks_for_the_next_frame_before_it_publishes() -> None:
    """The camera's thread works while this one talks to the broker."""
    fetched: list[bool] = []

    with paced("latest") as rig:
        publish = rig.broker.decision

        def decision(payload: dict[str, Any], encoded: bytes) -> bool:
            if not fetched:  # the first: the second frame lies there, and is fetched meanwhile
                wait_until(rig.camera.script.empty, "the camera to be asked again", 5)
                fetched.append(True)
            return publish(payload, encoded)

        rig.broker.decision = decision  # type: ignore[method-assign]
        seen(rig, 1, 2)
        rig.verdicts(2)
    assert fetched


def test_free_run_answers_each_frame_and_counts_those_it_had_no_time_for() -> None:
    with paced("latest") as rig:
        seen(rig, 1, 2)
        seen(rig, 7, level=BAD)
        assert [v for _, v, _ in rig.verdicts(3)] == ["pass", "pass", "reject"]
        rig.beat(lambda b: b["frames_dropped"] == 4, "four dropped frames in the heartbeat")


def test_silence_in_free_run_is_unknown_and_a_fault() -> None:
    with paced("latest", timeout_s=0.1) as rig:
        assert rig.verdicts(1) == [("free-1", "unknown", "no_frame")]
        rig.beat(lambda b: b["problems"] == ["camera"], "the camera as a problem")


def test_a_camera_that_hangs_in_free_run_is_unknown_and_the_heart_beats_on() -> None:
    with paced("latest", timeout_s=0.1) as rig:
        stuck = threading.Event()
        rig.camera.script.put(stuck)
        rig.beat(lambda b: not b["healthy"], "an unhealthy heartbeat")
        assert rig.verdicts(1)[0][1:] == ("unknown", "camera_failed")
        rig.camera.always = GOOD
        stuck.set()
        wait_until(lambda: rig.decisions[-1]["verdict"] == "pass", "a pass")


def test_pictures_at_their_end_end_the_line() -> None:
    for mode in ("latest", "hardware"):
        with paced(mode) as rig:
            seen(rig, 1)
            rig.camera.script.put(EndOfStreamError("the end", ""))
            rig.join()
            assert [v for _, v, _ in rig.verdicts(1)] == ["pass"]
            assert len(rig.decisions) == 1
