"""Free run: the model is at the next picture while the verdict on the last one is told."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.broker import wait_until
from support.line_rig import BAD, GOOD, LevelRunner, Rig, ScriptedCamera, model

from metal_edge.daemon.cameras import CameraError, EndOfStreamError
from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.service import SWITCH_S
from metal_edge.domain import Frame, Inspection
from metal_edge.errors import UnavailableError


@pytest.fixture(autouse=True)
def _as_in_the_daemon() -> Iterator[None]:
    """Threads change hands as soon as they do there."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    yield
    sys.setswitchinterval(before)


class FastCamera(ScriptedCamera):
    """Always has a picture, and in between lost some."""

    def __init__(self, lost: int = 0) -> None:
        super().__init__("cam0", SystemClock(), GOOD)
        self._lost = lost

    def frame(self, level: int, seq: int | None = None, age_ns: int = 0) -> Frame:
        self.seq += self._lost
        return super().frame(level, seq, age_ns)


class TimedRunner(LevelRunner):
    """Takes longer than it takes to fetch a picture; knows whether somebody is at it."""

    busy = False

    def run(self, images: Any) -> list[Inspection]:
        self.busy = True
        threading.Event().wait(0.005)
        found = super().run(images)
        self.busy = False
        return found


def free(**sections: Any) -> Rig:
    """With nothing but what the test puts into the script."""
    rig = Rig(camera={"mode": "latest", "timeout_s": 1}, **sections)
    rig.camera.always = None
    return rig


def full_rate(lost: int = 0) -> Rig:
    """A camera faster than the model."""
    rig = Rig({"cam0": FastCamera(lost)}, camera={"mode": "latest", "timeout_s": 1})
    rig.runner.run = TimedRunner().run  # type: ignore[method-assign]
    return rig


def hold_words(rig: Rig) -> tuple[threading.Event, threading.Event]:
    """The first verdict is not out before the second event is set; the first: it is about to be."""
    about_to, may = threading.Event(), threading.Event()
    publish = rig.broker.decision

    def decision(payload: dict[str, Any], encoded: bytes) -> bool:
        about_to.set()
        may.wait(20)
        return publish(payload, encoded)

    rig.broker.decision = decision  # type: ignore[method-assign]
    return about_to, may


def test_the_model_is_at_the_next_picture_before_a_verdict_is_out() -> None:
    asked: list[float] = []
    with free() as rig:
        run = rig.runner.run

        def noted(images: Any) -> list[Inspection]:
            asked.append(float(images.mean()))
            wait_until(rig.camera.script.empty, "the second picture to be at hand")
            return run(images)

        rig.runner.run = noted  # type: ignore[method-assign]
        about_to, may = hold_words(rig)
        for level in (GOOD, BAD):
            rig.camera.script.put(level)
        assert about_to.wait(5)
        wait_until(lambda: asked == [GOOD, BAD], "the second picture to be asked about")
        assert rig.decisions == []
        may.set()
        assert [v for _, v, _ in rig.verdicts(2)] == ["pass", "reject"]


def test_each_picture_gets_its_own_verdict_in_order() -> None:
    levels = [GOOD, BAD, BAD, GOOD, BAD, GOOD, GOOD, BAD] * 5
    with free() as rig:
        for level in levels:
            rig.camera.script.put(level)
        told = rig.verdicts(len(levels))
    assert [v for _, v, _ in told] == ["pass" if x == GOOD else "reject" for x in levels]
    assert [t for t, _, _ in told] == [f"free-{n + 1}" for n in range(len(levels))]
    assert [d["frame_id"] for d in rig.decisions] == [f"cam0-{n + 1}" for n in range(len(levels))]


def test_every_heartbeat_adds_up() -> None:
    """Pictures of the camera: those that have their verdict, and those dropped before them."""
    with full_rate(lost=2) as rig:
        rig.beat(lambda b: b["frames_dropped"] > 60, "sixty dropped frames")
        for _ in range(5):
            beat = rig.beat(lambda b: True, "a heartbeat")
            decided = beat["last_decision_seq"]
            frame = int(rig.decisions[decided - 1]["frame_id"].removeprefix("cam0-"))
            assert beat["frames_dropped"] == frame - decided - 2


def test_stopping_finishes_what_was_begun_and_begins_no_more() -> None:
    with full_rate() as rig:
        about_to, may = hold_words(rig)
        assert about_to.wait(5)
        rig.stop.request()
        may.set()
        rig.join()
        assert len(rig.decisions) <= 2, "one that is told, and one that the model is at"


def test_models_change_between_two_pictures_at_full_rate() -> None:
    """What one found is told under its own name, and nobody is at it when it is handed back."""
    scores = {f"r{number}": GOOD / 255 + number / 1000 for number in range(6)}
    busy: list[bool] = []
    with full_rate() as rig:
        serving = None
        for name, score in scores.items():
            seen, let_go = len(rig.decisions), threading.Event()
            runner = TimedRunner(score - GOOD / 255)

            def done(models: object, old: Any = serving, over: Any = let_go) -> None:
                busy.append(old is not None and old.busy)
                over.set()

            rig.line.replace_models({"cam0": model(runner, recipe=name)}, done)
            assert let_go.wait(5), "a model must not wait for the camera to pause"
            serving = runner
            rig.verdicts(seen + 5)
    assert busy == [False] * len(scores)
    told = {(d["model"]["id"], round(d["score"], 6)) for d in rig.decisions if d["score"]}
    assert told - {("default", round(GOOD / 255, 6))} == {
        (name, round(score, 6)) for name, score in scores.items()
    }


def test_disarmed_nothing_passes_though_the_model_is_at_it() -> None:
    with full_rate() as rig:
        about_to, may = hold_words(rig)
        assert about_to.wait(5)
        rig.command("disarm")
        may.set()
        rig.verdicts(8)
    # The first was on its way out.
    assert {v["verdict"] for v in rig.decisions[1:]} == {"unknown"}
    assert [d["reason"] for d in rig.decisions[1:]] == ["disarmed"] * (len(rig.decisions) - 1)


def test_a_model_that_fails_in_free_run_is_unknown_and_may_come_back() -> None:
    with free() as rig:
        rig.runner.error = UnavailableError("no memory", "")
        rig.camera.script.put(GOOD)
        assert rig.verdicts(1) == [("free-1", "unknown", "inference_failed")]
        rig.runner.error = None
        rig.camera.script.put(GOOD)
        assert rig.verdicts(2)[1] == ("free-2", "pass", "ok")


@pytest.mark.parametrize("error", [CameraError("the cable is out"), EndOfStreamError("", "")])
def test_what_the_camera_says_meanwhile_comes_after_the_verdict(error: CameraError) -> None:
    with free() as rig:
        rig.runner.gate = threading.Event()
        rig.camera.script.put(GOOD)
        assert rig.runner.inside.wait(5)
        rig.camera.script.put(error)
        wait_until(rig.camera.script.empty, "the camera to be asked")
        rig.runner.gate.set()
        if isinstance(error, EndOfStreamError):
            rig.join()
            assert rig.verdicts(1) == [("free-1", "pass", "ok")]
        else:
            told = rig.verdicts(2)
            assert [(v, why) for _, v, why in told] == [
                ("pass", "ok"),
                ("unknown", "camera_failed"),
            ]


def test_a_picture_that_grew_old_at_the_model_is_not_passed() -> None:
    """Freshness counts when the verdict is made, not when the model was asked."""
    with free(max_age_ms=200) as rig:
        rig.runner.gate = threading.Event()
        rig.camera.script.put(GOOD)
        assert rig.runner.inside.wait(5)
        until_ns = rig.clock.mono_ns() + 250_000_000
        wait_until(lambda: rig.clock.mono_ns() > until_ns, "the picture to be old")
        rig.runner.gate.set()
        assert rig.verdicts(1) == [("free-1", "unknown", "stale_frame")]


def test_a_model_that_hangs_stops_the_heart() -> None:
    """Or the watchdog would be fed for a line that decides nothing."""
    with free() as rig:
        rig.runner.gate = threading.Event()
        rig.beat(lambda b: True, "a heartbeat before")
        rig.camera.script.put(GOOD)
        assert rig.runner.inside.wait(5)
        beats = len(rig.broker.beats)
        until_ns = rig.clock.mono_ns() + 10 * round(1e9 / rig.settings.heartbeat_hz)
        wait_until(lambda: rig.clock.mono_ns() > until_ns, "ten heartbeats' time")
        assert len(rig.broker.beats) == beats
        rig.runner.gate.set()
        rig.beat(lambda b: True, "a heartbeat after")


def test_no_thread_is_left() -> None:
    with full_rate() as rig:
        rig.verdicts(1)
        assert "inference" in [thread.name for thread in threading.enumerate()]
        rig.end()
        assert "inference" not in [thread.name for thread in threading.enumerate()]
