"""The simulator camera: the triggered part, the free-running line, and time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from metal_edge.daemon.cameras import CameraError, CameraTimeoutError, create_camera
from metal_edge.daemon.clock import SystemClock
from metal_edge.demo.camera import SimulatorCamera
from metal_edge.demo.render import PartSequence
from metal_edge.domain import TimeSource
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraMode, CameraSettings

SEED = 21


def settings(mode: CameraMode = CameraMode.TRIGGERED, fps: float = 10, **options: Any):
    options = {"seed": SEED, "defect_rate": 0.5, "exposure_ms": 1.0, **options}
    return CameraSettings(kind="simulator", mode=mode, fps=fps, camera_id="sim", options=options)


@pytest.fixture
def camera() -> Iterator[SimulatorCamera]:
    made = SimulatorCamera(settings(start_index=40), SystemClock())
    made.open()
    yield made
    made.close()


LINE = PartSequence(SEED, 0.5)


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_trigger_gives_the_picture_of_its_part(prefetch: bool) -> None:
    camera = SimulatorCamera(settings(prefetch=prefetch), SystemClock())
    camera.open()
    try:
        for seq, index in enumerate((7, 8, 9, 3, 4, 4, 100)):
            camera.trigger(PartSequence.part_id(index))
            frame = camera.grab(5.0)
            assert (frame.frame_id, frame.seq) == (PartSequence.part_id(index), seq)
            assert np.array_equal(frame.image, LINE.render(index).image), index
    finally:
        camera.close()


def test_without_a_known_part_id_the_next_part_comes(camera: SimulatorCamera) -> None:
    got = []
    for part_id in (None, "bolt 12", "P-000050", None, "P-50"):
        camera.trigger(part_id)
        got.append(camera.grab(5.0).frame_id)
    assert got == ["P-000040", "P-000041", "P-000050", "P-000051", "P-000052"]


def test_the_frame_carries_its_exposure_time(camera: SimulatorCamera) -> None:
    mono, utc = time.monotonic_ns(), time.time_ns()
    camera.trigger(None)
    after = time.monotonic_ns()
    frame = camera.grab(5.0)
    assert mono <= frame.t_mono_ns <= after
    assert abs((frame.t_utc_ns - utc) - (frame.t_mono_ns - mono)) < 50_000_000
    assert frame.time_source is TimeSource.CAMERA
    assert frame.camera_id == "sim"


def test_a_second_trigger_replaces_the_first_and_shows_as_a_gap(camera: SimulatorCamera) -> None:
    camera.trigger("P-000001")
    camera.trigger("P-000002")
    frame = camera.grab(5.0)
    assert (frame.frame_id, frame.seq) == ("P-000002", 1)
    with pytest.raises(CameraTimeoutError, match="not triggered"):
        camera.grab(0.1)


def test_grab_gives_up_in_time_and_the_frame_is_still_to_be_had() -> None:
    camera = SimulatorCamera(settings(exposure_ms=600.0), SystemClock())
    camera.open()
    try:
        camera.trigger("P-000001")
        start = time.monotonic()
        with pytest.raises(CameraTimeoutError, match="in time"):
            camera.grab(0.05)
        assert time.monotonic() - start > 0.04
        assert camera.grab(5.0).frame_id == "P-000001"
        assert time.monotonic() - start >= 0.6  # no picture before its exposure ended
    finally:
        camera.close()


def test_a_part_rendered_ahead_costs_the_exposure_only(camera: SimulatorCamera) -> None:
    ahead = camera._renderer._ahead  # type: ignore[union-attr]
    assert ahead is not None
    assert ahead[0] == 40
    picture = ahead[1].result(10)  # a condition to wait for: the guess is rendered
    camera.trigger("P-000040")
    assert camera.grab(5.0).image is picture.image


def test_free_run_keeps_pace_and_skips_what_nobody_grabbed() -> None:
    camera = SimulatorCamera(settings(CameraMode.LATEST, fps=20, start_index=5), SystemClock())
    camera.open()
    try:
        camera.trigger("P-000999")  # a free-running camera takes no trigger
        frames = [camera.grab(5.0) for _ in range(4)]
        until = time.monotonic_ns() + 300_000_000
        while time.monotonic_ns() < until:  # the inspection is busy; the line goes on
            np.dot(np.ones(1000), np.ones(1000))
        late = camera.grab(5.0)
        now = time.monotonic_ns()
    finally:
        camera.close()
    for frame in (*frames, late):
        assert frame.frame_id == PartSequence.part_id(5 + frame.seq)
        assert np.array_equal(frame.image, LINE.render(5 + frame.seq).image)
        assert (frame.t_mono_ns - frames[0].t_mono_ns) == (frame.seq - frames[0].seq) * 50_000_000
    assert [f.seq for f in frames] == sorted({f.seq for f in frames})
    assert late.seq >= frames[-1].seq + 5
    assert now - late.t_mono_ns < 2_000_000_000


def test_free_run_times_out_between_parts() -> None:
    camera = SimulatorCamera(settings(CameraMode.LATEST, fps=0.5), SystemClock())
    camera.open()
    try:
        assert camera.grab(5.0).seq == 0
        with pytest.raises(CameraTimeoutError):
            camera.grab(0.02)
    finally:
        camera.close()


def test_closed_means_closed_and_leaves_no_thread() -> None:
    camera = SimulatorCamera(settings(), SystemClock())
    camera.close()
    with pytest.raises(CameraError, match="not open"):
        camera.grab(0.1)
    before = set(threading.enumerate())
    camera.open()
    camera.open()
    camera.trigger(None)
    camera.close()
    camera.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(CameraError, match="not open"):
        camera.trigger(None)
    camera.open()  # as the daemon does after a fault
    camera.trigger("P-000003")
    assert camera.grab(5.0).frame_id == "P-000003"
    camera.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("seed", "x"), ("defect_rate", 1.5), ("defect_rte", 0.1), ("start_index", True)],
)
def test_a_wrong_option_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        SimulatorCamera(settings(**{name: value}), SystemClock())


def test_the_settings_kind_simulator_is_this_camera() -> None:
    assert isinstance(create_camera(settings(), SystemClock()), SimulatorCamera)
