"""Folder and OpenCV cameras; the capture behind the latter is scripted, the rest is real."""

from __future__ import annotations

import itertools
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.broker import wait_until
from support.tiny_bundle import write_image

from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EndOfStreamError,
    create_camera,
)
from metal_edge.daemon.cameras.capture import CaptureCamera, RtspCamera, VideoCamera
from metal_edge.daemon.cameras.folder import FolderCamera
from metal_edge.daemon.clock import SystemClock
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraMode, CameraSettings


def settings(kind: str, uri: object, **more: Any) -> CameraSettings:
    return CameraSettings(kind=kind, uri=str(uri), **more)


def folder_camera(path: Path, **more: Any) -> FolderCamera:
    camera = create_camera(settings("folder", path, **more), SystemClock())
    assert isinstance(camera, FolderCamera)
    camera.open()
    return camera


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, name in enumerate(["b.png", "a.png", "c.jpg"]):
        write_image(tmp_path / name, 10 * number)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"folder.*rtsp.*v4l2.*video"):
        create_camera(settings("kodak", ""), SystemClock())


def test_parts_without_a_picture_of_their_name_get_the_next_in_order(pictures: Path) -> None:
    camera = folder_camera(pictures)
    names = []
    for part in ("x", None, "y"):
        before = time.monotonic_ns()
        camera.trigger(part)
        frame = camera.grab(1)
        names.append(frame.frame_id)
        assert before <= frame.t_mono_ns <= time.monotonic_ns()
        assert frame.image.shape == (32, 32, 3)
    assert names == ["a.png", "b.png", "c.jpg"]
    camera.trigger("x")
    with pytest.raises(CameraTimeoutError, match="no more images"):
        camera.grab(1)


def test_a_named_part_never_gets_another_parts_picture(pictures: Path) -> None:
    camera = folder_camera(pictures)
    for part, name in (("c", "c.jpg"), ("a", "a.png"), ("c", "c.jpg")):
        camera.trigger(part)
        assert camera.grab(1).frame_id == name
    for part in ("x", None):
        camera.trigger(part)
        with pytest.raises(CameraTimeoutError, match="named like this part"):
            camera.grab(1)


def test_one_picture_per_trigger(pictures: Path) -> None:
    camera = folder_camera(pictures)
    camera.trigger("a")
    camera.grab(1)
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.01)


def test_free_run_skips_nothing_but_names_the_corrupt_one(pictures: Path) -> None:
    (pictures / "b.png").write_bytes(b"not a picture")
    camera = folder_camera(pictures, mode=CameraMode.LATEST, fps=500)
    assert camera.grab(1).frame_id == "a.png"
    with pytest.raises(CameraError, match=r"b\.png"):
        camera.grab(1)
    assert camera.grab(1).frame_id == "c.jpg"
    with pytest.raises(EndOfStreamError):
        camera.grab(1)


def test_a_folder_that_vanishes_is_named_and_may_come_back(pictures: Path) -> None:
    camera = folder_camera(pictures)
    away = pictures.rename(pictures.with_name("away"))
    camera.trigger("a")
    with pytest.raises(CameraError, match=r"a\.png"):
        camera.grab(1)
    away.rename(pictures)
    camera.trigger("a")
    assert camera.grab(1).frame_id == "a.png"


def test_a_picture_that_is_changed_between_two_parts_is_read_as_it_is(pictures: Path) -> None:
    """Half written by somebody else: refused. Whole again: shown."""
    camera = folder_camera(pictures)
    write_image(pictures / "a.png", 77)
    whole = (pictures / "a.png").read_bytes()
    for size in (0, 20, len(whole) // 2, len(whole) - 20):
        (pictures / "a.png").write_bytes(whole[:size])
        camera.trigger("a")
        with pytest.raises(CameraError, match=r"a\.png"):
            camera.grab(1)
    (pictures / "a.png").write_bytes(whole)
    camera.trigger("a")
    assert camera.grab(1).image.max() == 77


def test_a_picture_too_large_to_be_one_is_refused_before_it_is_decoded(pictures: Path) -> None:
    """A header of 30 000 x 30 000 pixels, and a file of 1 GB that takes no room on the disk."""
    whole = (pictures / "a.png").read_bytes()
    header = struct.pack(">II", 30_000, 30_000) + whole[24:29]
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (pictures / "a.png").write_bytes(whole[:16] + header + checksum + whole[33:])
    with (pictures / "b.png").open("r+b") as file:
        file.truncate(2**30)
    camera = folder_camera(pictures)
    tracemalloc.start()
    for part, why in (("a", "pixels"), ("b", "b.png")):
        camera.trigger(part)
        with pytest.raises(CameraError, match=why):
            camera.grab(1)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("key", ["exposure_us", "gain_db"])
def test_a_folder_has_no_sensor(pictures: Path, key: str) -> None:
    with pytest.raises(SettingsError, match=rf"camera\.{key} cannot be used with kind folder"):
        folder_camera(pictures, **{key: 1.0})


def test_loop_begins_again(pictures: Path) -> None:
    camera = folder_camera(pictures, mode=CameraMode.LATEST, fps=500, loop=True)
    names = [camera.grab(1).frame_id for _ in range(4)]
    assert names == ["a.png", "b.png", "c.jpg", "a.png"]


def test_free_run_keeps_its_pace(pictures: Path) -> None:
    began_ns = time.monotonic_ns()
    camera = folder_camera(pictures, mode=CameraMode.LATEST, fps=20)
    times = [camera.grab(1).t_mono_ns for _ in range(3)]
    # However late one picture is taken, none is before its time.
    assert all(taken - began_ns >= count * 50e6 for count, taken in enumerate(times))
    slow = folder_camera(pictures, mode=CameraMode.LATEST, fps=0.1)
    slow.grab(1)
    with pytest.raises(CameraTimeoutError):
        slow.grab(0.01)


@pytest.mark.parametrize("uri", ["", "/nowhere"])
def test_no_folder(uri: str) -> None:
    with pytest.raises(CameraError, match=r"camera\.uri"):
        create_camera(settings("folder", uri), SystemClock()).open()


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="no pictures"):
        create_camera(settings("folder", tmp_path), SystemClock()).open()


def make_video(path: Path, frames: int) -> Path:
    """Blue noise, so that each picture takes about the same room in the file."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
    noise = np.random.default_rng(3)
    for _ in range(frames):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[..., 0] = noise.integers(180, 220, (32, 32))  # blue in OpenCV's order
        writer.write(picture)
    writer.release()
    return path


def test_a_video_is_rgb_and_ends(tmp_path: Path) -> None:
    uri = make_video(tmp_path / "v.avi", 2)
    camera = VideoCamera(settings("video", uri, mode="latest", fps=100), SystemClock())
    camera.open()
    frame = camera.grab(2)
    assert frame.image[16, 16, 2] > 150 > frame.image[16, 16, 0]
    with pytest.raises(EndOfStreamError):
        for _ in range(3):
            camera.grab(2)
    camera.close()


def test_a_video_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    """FFmpeg would hand out the half picture at its end as a good one."""
    whole = make_video(tmp_path / "whole.avi", 6).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(CameraError, match=r"cut\.avi is cut off"):
        VideoCamera(settings("video", tmp_path / "cut.avi"), SystemClock()).open()


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.avi").write_bytes(b"no video at all")
    with pytest.raises(CameraError, match=r"v\.avi cannot be opened"):
        VideoCamera(settings("video", tmp_path / "v.avi"), SystemClock()).open()
    with pytest.raises(CameraError, match=r"gone\.avi' cannot be read \(No such file"):
        VideoCamera(settings("video", tmp_path / "gone.avi"), SystemClock()).open()


def test_reopening_a_file_again_and_again_leaves_no_descriptor_or_thread(tmp_path: Path) -> None:
    uri = make_video(tmp_path / "v.avi", 1)
    camera = VideoCamera(settings("video", uri, mode="latest", fps=200, loop=True), SystemClock())
    camera.open()
    camera.grab(5)
    held = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    wait_until(lambda: camera.grab(5).seq > 50, "fifty rounds")
    camera.close()
    after = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    assert after[0] <= held[0] and after[1] == held[1] - 1


@pytest.mark.parametrize("kind", ["video", "rtsp"])
@pytest.mark.parametrize(
    "wanted",
    [
        {"exposure_us": 100.0},
        {"gain_db": 1.0},
        {"pixel_format": "mono8"},
        {"trigger_source": "Line1"},
        {"mode": "hardware"},
        {"options": {"transport": "udp"}},
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(kind: str, wanted: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=rf"camera\.{next(iter(wanted))}"):
        create_camera(settings(kind, "x", **wanted), SystemClock())


def test_file_cameras_are_not_live_and_others_are() -> None:
    """Two equal pictures of a file are no sign of a frozen sensor."""
    live = {kind: create_camera(settings(kind, "0"), SystemClock()).live for kind in KINDS}
    assert {kind for kind in KINDS if not live[kind]} == {"folder", "video"}


KINDS = ("folder", "video", "v4l2", "rtsp", "csi", "pylon", "aravis")


class ScriptedCapture:
    """Behaves like cv2.VideoCapture; each read waits and answers as the script says."""

    def __init__(self, script: Iterator[tuple[float, bool, int]]) -> None:
        self._script = script
        self._position_ms = 0.0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def read(self) -> tuple[bool, Any]:
        wait_s, ok, level = next(self._script)
        time.sleep(wait_s)  # the camera's own pace
        self._position_ms += wait_s * 1000
        return ok, np.full((2, 2, 3), level, np.uint8)

    def get(self, prop: int) -> float:
        del prop
        return self._position_ms

    def release(self) -> None:
        pass


class ScriptedCamera(CaptureCamera):
    """One script per opening."""

    def __init__(self, scripts: list[Callable[[], Iterator[tuple[float, bool, int]]]]) -> None:
        super().__init__(settings("rtsp", "rtsp://u:secret@h/x", timeout_s=0.2), SystemClock())
        self._scripts = iter(scripts)
        self.openings = 0

    def capture(self) -> Any:
        self.openings += 1
        return ScriptedCapture(next(self._scripts)())


def steady(level: int) -> Callable[[], Iterator[tuple[float, bool, int]]]:
    return lambda: itertools.repeat((0.01, True, level))


def then(
    frames: list[tuple[float, bool, int]],
) -> Callable[[], Iterator[tuple[float, bool, int]]]:
    return lambda: iter(frames)


def levels(camera: ScriptedCamera, until: int) -> set[int]:
    """Levels of all frames up to the first one of level `until`."""
    seen: set[int] = set()

    def found() -> bool:
        try:
            seen.add(int(camera.grab(0.5).image[0, 0, 0]))
        except CameraTimeoutError:
            return False
        return until in seen

    wait_until(found, f"a frame of level {until}")
    camera.close()
    return seen


def test_a_frame_whose_read_took_too_long_is_old_and_the_stream_is_opened_anew() -> None:
    fine, old = (0.01, True, 1), (0.4, True, 99)
    stalled = lambda: itertools.chain([fine, fine, old], steady(99)())  # noqa: E731
    camera = ScriptedCamera([stalled, steady(2)])
    camera.open()
    assert levels(camera, until=2) <= {1, 2}
    assert camera.openings == 2


def test_a_slow_first_frame_is_not_used_but_no_stall() -> None:
    script = [(0.3, True, 99)]
    camera = ScriptedCamera([lambda: itertools.chain(script, steady(3)())])
    camera.open()
    assert levels(camera, until=3) == {3}
    assert camera.openings == 1


def test_a_failed_read_opens_anew() -> None:
    camera = ScriptedCamera([then([(0.01, True, 1), (0.0, False, 99)]), steady(2)])
    camera.open()
    assert levels(camera, until=2) <= {1, 2}


def test_a_trigger_wants_a_frame_whose_read_began_later() -> None:
    """The frame being read when the trigger comes may show the part before."""
    reading, go_on = threading.Event(), threading.Event()

    def script() -> Iterator[tuple[float, bool, int]]:
        yield 0.0, True, 1
        reading.set()
        go_on.wait(5)
        yield 0.0, True, 2
        yield from itertools.repeat((0.01, True, 3))

    camera = ScriptedCamera([script])
    camera.open()
    assert reading.wait(5)
    camera.trigger(None)
    go_on.set()
    assert int(camera.grab(2).image[0, 0, 0]) == 3
    camera.close()


def test_a_streams_latency_counts_as_age() -> None:
    """What arrives within it after a trigger was taken before, and may show the part before."""

    class Stream(RtspCamera):
        def capture(self) -> Any:
            return ScriptedCapture(steady(1)())

    late = {"latency_ms": 300}
    camera = Stream(settings("rtsp", "rtsp://h/x", timeout_s=2, options=late), SystemClock())
    camera.open()
    asked_ns = time.monotonic_ns()
    camera.trigger(None)
    frame = camera.grab(5)
    assert frame.t_mono_ns >= asked_ns
    assert time.monotonic_ns() - frame.t_mono_ns >= 300e6
    camera.close()


def test_a_read_that_never_returns_does_not_hold_up_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for_ever = threading.Event()

    def script() -> Iterator[tuple[float, bool, int]]:
        for_ever.wait(30)
        yield 0.0, True, 1

    camera = ScriptedCamera([script])
    camera.open()
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.05)
    began = time.monotonic()
    camera.close()
    assert time.monotonic() - began < 10  # of the 30 that the read takes
    assert "secret" not in caplog.text and "left behind" in caplog.text
    for_ever.set()
