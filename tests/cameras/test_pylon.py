"""pypylon with Basler's camera emulation."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import numpy as np
import pytest
from support.broker import wait_until
from support.camera_stand_ins import Open, held, next_frame

from metal_edge.daemon.cameras import Camera, CameraError, CameraTimeoutError, TornFrameError
from metal_edge.daemon.cameras.pixel_formats import FORMATS
from metal_edge.daemon.cameras.pylon import PylonCamera, PylonSource
from metal_edge.daemon.clock import SystemClock
from metal_edge.domain import TimeSource
from metal_edge.settings import CameraSettings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pypylon") is None,
    reason="pypylon not installed: pip install 'metal-edge[pylon]'",
)


def basler(opened: Open, **settings: Any) -> Camera:
    return opened("pylon", **{"uri": "0815-0000", "mode": "latest", **settings})


def test_the_codes_of_pixel_formats_are_those_that_basler_has() -> None:
    """A wrong one would show a Bayer mosaic in the wrong colours, or none at all."""
    pylon = importlib.import_module("pypylon.pylon")
    theirs = {
        name.removeprefix("PixelType_").lower(): getattr(pylon, name) & 0xFFFFFFFF
        for name in dir(pylon)
        if name.startswith("PixelType_")
    }
    ours = {item.genicam.lower(): item.code for item in FORMATS.values()}
    common = theirs.keys() & ours.keys()
    assert sum(name.startswith("bayer") for name in common) == 24
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}


def test_free_run(opened: Open) -> None:
    camera = basler(opened, exposure_us=2000, gain_db=3)
    frames = [next_frame(camera) for _ in range(5)]
    assert {frame.image.shape for frame in frames} == {(1040, 1024, 3)}
    # The emulation has no clock: its stamps are zero.
    assert {frame.time_source for frame in frames} == {TimeSource.ARRIVAL}
    assert len({frame.image.tobytes() for frame in frames}) == 5


@pytest.mark.parametrize("name", ["mono8", "mono10", "mono12", "bayer_rg8", "bayer_gb12", "rgb8"])
def test_pixel_formats(opened: Open, name: str) -> None:
    """The emulation's second test image is a grey ramp of which each value is one level."""
    frame = next_frame(basler(opened, pixel_format=name, exposure_us=2000))
    assert frame.pixel_format == name
    steps = np.diff(frame.image[100, 2:600, 0])  # uint8: the ramp begins again after 255
    if name.startswith("mono"):
        assert set(steps.tolist()) == {1}
    assert frame.image.max() > 200


def test_software_trigger(opened: Open) -> None:
    camera = basler(opened, mode="triggered")
    with pytest.raises(CameraTimeoutError):
        camera.grab(0.2)
    for number in range(1, 6):
        asked_ns = time.monotonic_ns()
        camera.trigger(None)
        frame = next_frame(camera)
        assert frame.t_mono_ns >= asked_ns and frame.seq == number
        with pytest.raises(CameraTimeoutError):
            camera.grab(0.1)


class Watched(PylonCamera):
    """Lets the test reach the emulation's command for failures."""

    source: PylonSource

    def connect(self) -> PylonSource:
        self.source = super().connect()
        return self.source


def test_failed_buffers_are_torn_frames() -> None:
    settings = CameraSettings(
        kind="pylon",
        uri="0815-0000",
        mode="hardware",
        trigger_source="Line1",
        fifo=64,
        options={"TriggerMode": "Off", "ForceFailedBufferCount": 3},
    )
    camera = Watched(settings, SystemClock())
    camera.open()
    next_frame(camera)
    camera.source._camera.ForceFailedBuffer.Execute()
    torn = 0

    def three() -> bool:
        nonlocal torn
        try:
            next_frame(camera)
        except TornFrameError:
            torn += 1
        return torn == 3

    wait_until(three, "three torn frames", 20)
    assert next_frame(camera)
    camera.close()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"gain_db": 55}, "Gain cannot be 55.0: the camera allows 0 to 48"),
        ({"options": {"ExposureTime": 2e7}}, r"ExposureTime cannot be .* allows 1 to 1e\+07"),
        ({"pixel_format": "mono12p"}, "PixelFormat cannot be Mono12p: the camera allows Mono8"),
        ({"options": {"Nonsense": 1}}, "no node Nonsense"),
        ({"mode": "hardware", "trigger_source": "Line9"}, "TriggerSource cannot be Line9"),
        ({"uri": "4711"}, r"'4711' is not among the Basler cameras \(0815-0000, 0815-0001\)"),
        ({"uri": ""}, "camera.uri is empty and there is not exactly one"),
    ],
)
def test_what_cannot_be(opened: Open, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(CameraError, match=message):
        basler(opened, **wanted)
    assert next_frame(basler(opened))  # the failed attempt let go of the camera


def test_two_cameras_at_a_time(opened: Open) -> None:
    cameras = [basler(opened, uri=f"0815-000{number}", camera_id=f"c{number}") for number in (0, 1)]
    assert [next_frame(camera).camera_id for camera in cameras] == ["c0", "c1"]


def test_fifty_openings_leave_nothing_behind(opened: Open) -> None:
    camera = basler(opened, exposure_us=1000)
    for _ in range(3):  # the library's own threads
        next_frame(camera)
        camera.close()
        camera.open()
    next_frame(camera)
    before = held()
    for _ in range(50):
        camera.close()
        camera.open()
        next_frame(camera)
    wait_until(lambda: held() <= before, f"no more than {before} descriptors and threads")
