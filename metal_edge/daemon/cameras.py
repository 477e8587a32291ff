"""What the daemon asks of a camera, and how a kind in the settings becomes one."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, cast

from metal_edge.daemon.clock import Clock
from metal_edge.domain import Frame
from metal_edge.errors import SettingsError, UnavailableError
from metal_edge.settings import CameraSettings

GROUP = "metal_edge.cameras"

# Written as entry points too: one way to load a kind, and OpenCV is imported only when needed.
_BUILT_IN = (
    EntryPoint("folder", "metal_edge.daemon.camera_folder:FolderCamera", GROUP),
    EntryPoint("video", "metal_edge.daemon.camera_capture:VideoCamera", GROUP),
    EntryPoint("v4l2", "metal_edge.daemon.camera_capture:V4l2Camera", GROUP),
    EntryPoint("rtsp", "metal_edge.daemon.camera_capture:RtspCamera", GROUP),
)


class CameraError(UnavailableError):
    """The camera is not there, or this one frame cannot be used; the next one may be fine."""


class CameraTimeoutError(CameraError):
    """No frame arrived in time."""


class EndOfStreamError(CameraError):
    """A file camera without `loop` has shown everything it has, in free run."""


class Camera(Protocol):
    """A source of frames, used by one thread. Built as `Kind(settings, clock)`.

    Nothing touches hardware before `open`. After a CameraError the daemon calls `grab` again:
    a camera that can recover does so by itself, within a bounded time.
    """

    def open(self) -> None:
        """Connects.

        Raises:
            CameraError: not there; names the device and what to do.
        """

    def trigger(self, part_id: str | None) -> None:
        """Asks for one exposure (software trigger). Kinds that run free do nothing.

        Raises:
            CameraError: the request could not be sent.
        """

    def grab(self, timeout_s: float) -> Frame:
        """The next frame: of the last trigger, or the newest in free run.

        Raises:
            CameraTimeoutError: none within `timeout_s` seconds.
            EndOfStreamError: a file camera in free run is at its end.
            CameraError: the frame or the camera is broken.
        """

    def close(self) -> None:
        """Lets go of the device; may be called twice and before `open`."""


def create_camera(settings: CameraSettings, clock: Clock) -> Camera:
    """The camera of `settings.kind`: built in, or registered as `metal_edge.cameras`.

    Raises:
        SettingsError: no such kind, or a registered one that cannot be imported.
    """
    kinds = {entry.name: entry for entry in (*entry_points(group=GROUP), *_BUILT_IN)}
    entry = kinds.get(settings.kind)
    if entry is None:
        raise SettingsError(
            f"camera.kind {settings.kind!r} is not known",
            f"use one of {', '.join(sorted(kinds))}",
        )
    try:
        kind = entry.load()
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"camera.kind {settings.kind!r} cannot be loaded from {entry.value} ({error})",
            "install the package that provides it",
        ) from error
    return cast(Camera, kind(settings, clock))
