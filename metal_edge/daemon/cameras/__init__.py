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
    EntryPoint("folder", "metal_edge.daemon.cameras.folder:FolderCamera", GROUP),
    EntryPoint("video", "metal_edge.daemon.cameras.capture:VideoCamera", GROUP),
    EntryPoint("v4l2", "metal_edge.daemon.cameras.v4l2:V4l2Camera", GROUP),
    EntryPoint("rtsp", "metal_edge.daemon.cameras.capture:RtspCamera", GROUP),
    EntryPoint("csi", "metal_edge.daemon.cameras.gstreamer:CsiCamera", GROUP),
    EntryPoint("gstreamer", "metal_edge.daemon.cameras.gstreamer:GStreamerCamera", GROUP),
    EntryPoint("pylon", "metal_edge.daemon.cameras.pylon:PylonCamera", GROUP),
    EntryPoint("aravis", "metal_edge.daemon.cameras.aravis:AravisCamera", GROUP),
)


class CameraError(UnavailableError):
    """The camera is not there, or this one frame cannot be used; the next one may be fine."""


class CameraTimeoutError(CameraError):
    """No frame arrived in time."""


class EarlyFrameError(CameraError):
    """A wired exposure from before the trigger: this part's, that of one before, nobody knows."""


class LateRequestError(CameraError):
    """The camera was busy until the part had gone."""


class TornFrameError(CameraError):
    """An exposure of which a piece is missing: lost packets, half a buffer, a failed grab.

    Args:
        seq: its place in `Frame.seq`, so that the gap it leaves there is not counted again;
            None where the camera does not say.
    """

    def __init__(self, what: str, remedy: str = "", seq: int | None = None) -> None:
        super().__init__(what, remedy)
        self.seq = seq


class FrameOverflowError(CameraError):
    """`hardware`: more exposures than were grabbed in time. Told once; `Frame.seq` has the gap."""


class EndOfStreamError(CameraError):
    """A file camera without `loop` has shown everything it has, in free run."""


class Camera(Protocol):
    """A source of frames, used by one thread. Built as `Kind(settings, clock)`.

    Nothing touches hardware before `open`. After a CameraError the daemon calls `grab` again:
    a camera that can recover does so by itself, within a bounded time, and never holds up the
    thread that calls `trigger`, `grab` or `close` for longer than was agreed.

    Attributes:
        live: pictures of a real sensor, of which no two are alike: a repeated one is frozen.
            False for files and simulations.
    """

    live: bool

    def open(self) -> None:
        """Connects.

        Raises:
            CameraError: not there; names the device and what to do.
        """

    def trigger(self, part_id: str | None) -> None:
        """Asks for one exposure; frames that were exposed earlier no longer count.

        With a `trigger_source` other than `software`, and for kinds that run free, only the
        moment is noted: the exposure comes by itself.

        Raises:
            CameraError: the request could not be sent.
            EarlyFrameError: the wire was quicker; the next exposure is another part's.
        """

    def grab(self, timeout_s: float) -> Frame:
        """The next frame: of the last trigger; the newest in free run; in `hardware` mode the
        next exposure, in order, none left out but those that gaps in `Frame.seq` stand for.

        Raises:
            CameraTimeoutError: none within `timeout_s` seconds. In `hardware` mode that is no
                fault, and proves that the camera is there: one that is not raises CameraError.
            TornFrameError: a piece of the frame is missing.
            EarlyFrameError: the wire was quicker than the trigger.
            FrameOverflowError: `hardware`: exposures were lost here, too many were waiting.
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
