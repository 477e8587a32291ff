"""A camera that comes back shows it by itself: no part has to come for it."""

from __future__ import annotations

import threading

import pytest
from support.broker import wait_until
from support.line_rig import GOOD, LevelRunner, Rig, model

from metal_edge.daemon.cameras import CameraError
from metal_edge.daemon.line import inspector


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "LOOK_AGAIN_NS", 10_000_000)


def broken(live: bool = True) -> Rig:
    """A line whose camera is out; the caller starts it."""
    rig = Rig()
    rig.camera.live = live  # type: ignore[misc]
    return rig


def break_camera(rig: Rig) -> None:
    """Three parts without a picture."""
    rig.camera.always = None
    for number in range(3):
        rig.camera.script.put(CameraError("the cable is out"))
        rig.trigger(f"t{number}")
        rig.verdicts(number + 1)
    rig.beat(lambda b: not b["healthy"], "an unhealthy heartbeat")


def test_an_idle_line_is_healthy_again_when_its_camera_is() -> None:
    with broken() as rig:
        break_camera(rig)
        rig.camera.script.put(CameraError("still out"))
        rig.camera.script.put(GOOD)
        rig.beat(lambda b: b["healthy"], "a healthy heartbeat without a part")
        assert len(rig.decisions) == 3, "a look is no part"
        asked = len(rig.camera.triggered)
        rig.camera.always = GOOD
        rig.trigger("t3")
        assert rig.verdicts(4)[3] == ("t3", "pass", "ok")
        assert len(rig.camera.triggered) == asked + 1, "a sound camera is left alone"


def test_a_part_does_not_wait_for_a_look() -> None:
    """The camera holds the look for longer than the part may take; both are given up in time."""
    with broken() as rig:
        break_camera(rig)
        held = threading.Event()
        rig.camera.script.put(held)
        wait_until(rig.camera.script.empty, "a look to be held")
        rig.trigger("t3", deadline_ms=200)
        assert rig.verdicts(4)[3] == ("t3", "unknown", "no_frame")
        held.set()


def test_a_change_of_models_does_not_wait_for_a_look() -> None:
    with broken() as rig:
        break_camera(rig)
        held = threading.Event()
        rig.camera.script.put(held)
        wait_until(rig.camera.script.empty, "a look to be held")
        back: list[object] = []
        rig.line.replace_models({"cam0": model(LevelRunner())}, back.append)
        wait_until(lambda: back, "the old models", 3)
        held.set()


def test_pictures_of_a_folder_are_for_parts_alone() -> None:
    with broken(live=False) as rig:
        break_camera(rig)
        for _ in range(5):
            rig.beat(lambda b: not b["healthy"], "a heartbeat")
        assert rig.camera.triggered == ["p"] * 3
