"""Settings of a GenICam camera: the nodes of the Standard Features Naming Convention (SFNC).

The same for pylon and Aravis, which differ only in how a node is reached. Every value is read
back, since a camera may round it or silently keep its own.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from metal_edge.daemon.cameras import CameraError, TornFrameError
from metal_edge.daemon.cameras.pixel_formats import (
    BY_CODE,
    FORMATS,
    PixelDataError,
    to_rgb,
    without_padding,
)
from metal_edge.domain import Image
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraMode, CameraSettings

# SFNC names first, then those of GigE Vision cameras from before it, and Basler's own.
EXPOSURE = ("ExposureTime", "ExposureTimeAbs")
GAIN = ("Gain",)
_OTHER_FORMATS = {
    "rgb8": ("RGB8Packed",),
    "bgr8": ("BGR8Packed",),
    "yuv422": ("YUV422Packed",),
    "yuyv": ("YUV422_YUYV_Packed", "YCbCr422_8"),
}
# A camera exposes in steps of its own; further away than this is another exposure.
ROUNDING = 0.01
CHECK = "check cable, power, and that nobody else uses the camera"
Value = str | int | float | bool


class Nodes(Protocol):
    """A camera's node map. Every method raises CameraError when the camera does not answer."""

    def has(self, name: str) -> bool:
        """The node is there and can be used now."""

    def get(self, name: str) -> Value:
        """The value, in the node's own type."""

    def set(self, name: str, value: Value) -> None:
        """Writes the value; an enumeration takes a name."""

    def allowed(self, name: str) -> tuple[float, float] | tuple[str, ...] | None:
        """Smallest and largest number, or the names of an enumeration; None where neither."""


def check_genicam(settings: CameraSettings) -> None:
    """What can be refused before a camera is there.

    Raises:
        SettingsError: `hardware` without an input of the camera.
    """
    if settings.mode is CameraMode.HARDWARE and settings.trigger_source == "software":
        raise SettingsError(
            "camera.mode hardware needs camera.trigger_source", "name the input, such as Line1"
        )


def configure(nodes: Nodes, settings: CameraSettings) -> None:
    """Brings the camera into the state that the settings describe.

    Options (`[camera.options]`) are nodes by name, written last and in the file's order.

    Raises:
        CameraError: a node is missing, refuses the value or changes it; names the node and what
            it allows.
    """
    if settings.pixel_format != "auto":
        _set_format(nodes, settings.pixel_format)
    if settings.exposure_us is not None:
        _switch_off(nodes, "ExposureAuto")
        write(nodes, _first(nodes, EXPOSURE, "exposure_us"), settings.exposure_us)
    if settings.gain_db is not None:
        _switch_off(nodes, "GainAuto")
        write(nodes, _first(nodes, GAIN, "gain_db"), settings.gain_db)
    _set_trigger(nodes, settings)
    for name, value in settings.options.items():
        write(nodes, name, value)


def write(nodes: Nodes, name: str, value: Value) -> None:
    """Sets one node and reads it back.

    Raises:
        CameraError: missing, not allowed, or changed by more than a camera rounds.
    """
    if not nodes.has(name):
        raise CameraError(f"the camera has no node {name}", "see its manual, or leave that out")
    allowed = nodes.allowed(name)
    if not _fits(value, allowed):
        raise CameraError(f"{name} cannot be {value}", f"the camera allows {_in_words(allowed)}")
    nodes.set(name, value)
    found = nodes.get(name)
    if not _same(value, found):
        raise CameraError(
            f"{name} was set to {value}, the camera made it {found}",
            f"it allows {_in_words(allowed)}",
        )


def _set_format(nodes: Nodes, name: str) -> None:
    wanted = FORMATS[name].genicam
    allowed = (nodes.allowed("PixelFormat") if nodes.has("PixelFormat") else None) or ()
    names = (wanted, *_OTHER_FORMATS.get(name, ()))
    write(nodes, "PixelFormat", next((known for known in names if known in allowed), wanted))


def _set_trigger(nodes: Nodes, settings: CameraSettings) -> None:
    """One trigger, that of a frame; all others of the camera off."""
    if not nodes.has("TriggerMode"):
        if settings.mode is not CameraMode.LATEST:
            raise CameraError("the camera has no node TriggerMode", "use camera.mode latest")
        return
    selectors = nodes.allowed("TriggerSelector") if nodes.has("TriggerSelector") else ()
    for selector in selectors or ():
        nodes.set("TriggerSelector", str(selector))
        if nodes.has("TriggerMode") and nodes.get("TriggerMode") != "Off":
            nodes.set("TriggerMode", "Off")
    if settings.mode is CameraMode.LATEST:
        return
    if selectors:
        write(nodes, "TriggerSelector", "FrameStart")
    source = settings.trigger_source
    write(nodes, "TriggerSource", "Software" if source == "software" else source)
    write(nodes, "TriggerMode", "On")


def _switch_off(nodes: Nodes, name: str) -> None:
    if nodes.has(name):
        write(nodes, name, "Off")


def _first(nodes: Nodes, names: tuple[str, ...], key: str) -> str:
    for name in names:
        if nodes.has(name):
            return name
    raise CameraError(
        f"the camera has no node {' or '.join(names)} for camera.{key}",
        "leave it out, and set the camera's own node by camera.options",
    )


def _fits(value: Value, allowed: tuple[float, float] | tuple[str, ...] | None) -> bool:
    if allowed is None:
        return True
    if isinstance(value, str):
        return value in allowed
    low, high = allowed[0], allowed[-1]
    return isinstance(low, float) and isinstance(high, float) and low <= value <= high


def _same(value: Value, found: Value) -> bool:
    if isinstance(value, str) or isinstance(found, str):
        return value == found
    return abs(found - value) <= ROUNDING * max(abs(value), 1.0)


def _in_words(allowed: tuple[float, float] | tuple[str, ...] | None) -> str:
    if allowed is None:
        return "other values"
    if isinstance(allowed[0], float):
        return f"{allowed[0]:g} to {allowed[-1]:g}"
    return ", ".join(str(name) for name in allowed)


def picture(
    name: str, code: int, data: NDArray[np.uint8], size: tuple[int, int], seq: int | None
) -> tuple[Image, str]:
    """A payload as a new uint8 [H, W, 3] RGB image, and its pixel format.

    Args:
        name: of the camera, for errors.
        code: the pixel format's PFNC number.
        data: bytes as they came; may belong to the driver.
        size: width and height in pixels.
        seq: the frame's number.

    Raises:
        CameraError: a pixel format that is not known.
        TornFrameError: the bytes cannot be such a picture.
    """
    pixel_format = BY_CODE.get(code & 0xFFFFFFFF)
    if pixel_format is None:
        raise CameraError(
            f"camera {name} sends pixel format 0x{code & 0xFFFFFFFF:08x}",
            "set camera.pixel_format",
        )
    try:
        plain = without_padding(data, *size, pixel_format)
        return to_rgb(plain, *size, pixel_format), pixel_format.name
    except PixelDataError as error:
        raise TornFrameError(f"camera {name}: {error}", CHECK, seq) from error
