"""Settings become nodes, each read back; the camera is a table that behaves like one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from metal_edge.daemon.cameras import CameraError
from metal_edge.daemon.cameras.genicam import Value, check_genicam, configure
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraSettings

Limits = tuple[float, float] | tuple[str, ...] | None


@dataclass
class Table:
    """Nodes with values and limits; `step` is what numbers are rounded down to."""

    values: dict[str, Value]
    limits: dict[str, Limits] = field(default_factory=dict)
    step: float = 0.001
    stubborn: frozenset[str] = frozenset()
    written: list[tuple[str, Value]] = field(default_factory=list)

    def has(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Value:
        if name == "TriggerMode" and "TriggerSelector" in self.values:
            return self.values.get(f"TriggerMode {self.values['TriggerSelector']}", "Off")
        return self.values[name]

    def set(self, name: str, value: Value) -> None:
        self.written.append((name, value))
        if name in self.stubborn:
            return
        if isinstance(value, float):
            value = value // self.step * self.step
        if name == "TriggerMode" and "TriggerSelector" in self.values:
            name = f"TriggerMode {self.values['TriggerSelector']}"
        self.values[name] = value

    def allowed(self, name: str) -> Limits:
        return self.limits.get(name)


def table(**more: Any) -> Table:
    values: dict[str, Value] = {
        "PixelFormat": "Mono8",
        "ExposureAuto": "Continuous",
        "ExposureTime": 10_000.0,
        "GainAuto": "Continuous",
        "Gain": 1.0,
        "TriggerSelector": "FrameStart",
        "TriggerMode": "Off",
        "TriggerMode AcquisitionStart": "On",
        "TriggerSource": "Line1",
        "Width": 640,
    }
    limits: dict[str, Limits] = {
        "PixelFormat": ("Mono8", "Mono12", "BayerRG8", "RGB8Packed"),
        "ExposureAuto": ("Off", "Continuous"),
        "ExposureTime": (20.0, 1e6),
        "GainAuto": ("Off", "Continuous"),
        "Gain": (0.0, 24.0),
        "TriggerSelector": ("FrameStart", "AcquisitionStart"),
        "TriggerMode": ("Off", "On"),
        "TriggerSource": ("Software", "Line1", "Line2"),
        "Width": (16.0, 2448.0),
    }
    return Table(values, limits, **more)


def camera(**more: Any) -> CameraSettings:
    return CameraSettings(kind="aravis", **more)


def test_all_settings_are_in_the_camera_and_nothing_automatic_undoes_them() -> None:
    nodes = table(step=0.5)
    configure(
        nodes,
        camera(
            pixel_format="mono12",
            exposure_us=1500,
            gain_db=6,
            mode="hardware",
            trigger_source="Line2",
            options={"Width": 320},
        ),
    )
    for name, value in {
        "PixelFormat": "Mono12",
        "ExposureAuto": "Off",
        "GainAuto": "Off",
        "Gain": 6,
        "TriggerSource": "Line2",
        "TriggerMode FrameStart": "On",
        "TriggerMode AcquisitionStart": "Off",
        "Width": 320,
    }.items():
        assert nodes.values[name] == value
    assert nodes.values["ExposureTime"] == pytest.approx(1500, abs=1)


def test_a_software_trigger_and_free_run() -> None:
    nodes = table()
    configure(nodes, camera())
    assert nodes.values["TriggerMode FrameStart"] == "On"
    assert nodes.values["TriggerSource"] == "Software"
    configure(nodes, camera(mode="latest"))
    assert nodes.values["TriggerMode FrameStart"] == "Off"


def test_what_is_not_asked_for_stays_as_it_is() -> None:
    nodes = table()
    configure(nodes, camera(mode="latest"))
    assert {name for name, _ in nodes.written} <= {"TriggerSelector", "TriggerMode"}


def test_names_from_before_the_convention() -> None:
    nodes = table()
    nodes.values["ExposureTimeAbs"] = nodes.values.pop("ExposureTime")
    configure(nodes, camera(exposure_us=500, pixel_format="rgb8"))
    assert nodes.values["ExposureTimeAbs"] == pytest.approx(500, abs=1)
    assert nodes.values["PixelFormat"] == "RGB8Packed"


@pytest.mark.parametrize("name", ["YUV422_8", "YUV422_YUYV_Packed", "YCbCr422_8"])
def test_one_format_under_three_names(name: str) -> None:
    nodes = table()
    nodes.limits["PixelFormat"] = ("Mono8", name)
    configure(nodes, camera(pixel_format="yuyv"))
    assert nodes.values["PixelFormat"] == name


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"exposure_us": 10}, r"ExposureTime cannot be 10\.0: the camera allows 20 to 1e\+06"),
        ({"gain_db": 30}, r"Gain cannot be 30\.0: the camera allows 0 to 24"),
        ({"pixel_format": "bgr8"}, r"PixelFormat cannot be BGR8: the camera allows Mono8, Mono12"),
        ({"trigger_source": "Line9"}, r"TriggerSource cannot be Line9: .* Software, Line1, Line2"),
        ({"options": {"Height": 3}}, r"no node Height"),
        ({"options": {"Width": "wide"}}, r"Width cannot be wide: the camera allows 16 to 2448"),
        ({"options": {"PixelFormat": 3}}, r"PixelFormat cannot be 3"),
    ],
)
def test_an_error_names_the_node_and_what_it_allows(wanted: Any, message: str) -> None:
    with pytest.raises(CameraError, match=message):
        configure(table(), camera(**wanted))


def test_a_camera_that_keeps_its_own_value_is_found_out() -> None:
    with pytest.raises(CameraError, match=r"ExposureTime was set to 500\.0, the camera made it"):
        configure(table(stubborn=frozenset({"ExposureTime"})), camera(exposure_us=500))
    with pytest.raises(CameraError, match="TriggerMode was set to On, the camera made it Off"):
        configure(table(stubborn=frozenset({"TriggerMode"})), camera())


def test_rounding_is_allowed_and_another_exposure_is_not() -> None:
    configure(table(step=4.0), camera(exposure_us=999))
    with pytest.raises(CameraError, match="ExposureTime"):
        configure(table(step=100.0), camera(exposure_us=999))


@pytest.mark.parametrize("name", ["ExposureTime", "Gain"])
def test_a_camera_without_the_node(name: str) -> None:
    nodes = table()
    del nodes.values[name]
    with pytest.raises(CameraError, match=rf"no node {name}.* for camera\.(exposure_us|gain_db)"):
        configure(nodes, camera(exposure_us=100, gain_db=1))


def test_a_camera_without_triggers_only_runs_free() -> None:
    nodes = table()
    del nodes.values["TriggerMode"]
    configure(nodes, camera(mode="latest"))
    with pytest.raises(CameraError, match="TriggerMode"):
        configure(nodes, camera())


def test_a_wired_trigger_needs_a_wire() -> None:
    with pytest.raises(SettingsError, match=r"trigger_source.*Line1"):
        check_genicam(camera(mode="hardware"))
    check_genicam(camera(mode="hardware", trigger_source="Line1"))
