"""What needs no GStreamer: the Jetson's pipeline, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from metal_edge.daemon.cameras import create_camera
from metal_edge.daemon.cameras.gstreamer import CsiOptions, csi_pipeline
from metal_edge.daemon.clock import SystemClock
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraSettings


def test_the_pipeline_of_a_csi_sensor() -> None:
    settings = CameraSettings(kind="csi", uri="1", exposure_us=1500, gain_db=6)
    options = CsiOptions(sensor_mode=2, width=1280, height=720, fps=60)
    assert csi_pipeline(settings, options) == (
        'nvarguscamerasrc sensor-id=1 sensor-mode=2 exposuretimerange="1500000 1500000"'
        ' gainrange="1.995 1.995" ispdigitalgainrange="1 1" aelock=true'
        " ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=60/1"
        " ! nvvidconv ! video/x-raw,format=BGRx"
    )
    plain = csi_pipeline(CameraSettings(kind="csi"), CsiOptions())
    assert plain.startswith("nvarguscamerasrc sensor-id=0 ! ")


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("csi", {"uri": "0 ! fakesink"}, "no sensor id"),
        ("csi", {"pixel_format": "mono8"}, r"camera\.pixel_format"),
        ("csi", {"mode": "hardware"}, r"camera\.mode"),
        ("csi", {"options": {"sensor_mode": "fast"}}, r"camera\.options\.sensor_mode"),
        ("gstreamer", {}, r"camera\.options\.pipeline"),
        ("gstreamer", {"options": {"pipeline": "x"}, "gain_db": 1.0}, r"camera\.gain_db"),
    ],
)
def test_what_makes_no_sense_is_refused(kind: str, wanted: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        create_camera(CameraSettings(kind=kind, **wanted), SystemClock())
