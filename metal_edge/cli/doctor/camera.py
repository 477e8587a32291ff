"""Cameras: each opens, gives one frame, and the frame is what its bundle was made for."""

from __future__ import annotations

from collections.abc import Mapping

from metal_edge.bundle import Bundle
from metal_edge.cli.doctor.finding import Finding, Level, failure
from metal_edge.daemon.cameras import CameraTimeoutError, create_camera
from metal_edge.daemon.cameras.frame_checks import FrameChecks
from metal_edge.daemon.clock import SystemClock
from metal_edge.domain import Frame
from metal_edge.errors import MetalEdgeError
from metal_edge.settings import CameraMode, CameraSettings, LineSettings

# Many may read them at a time.
SHARED_KINDS = ("folder", "video", "simulator")


def check_cameras(
    settings: LineSettings, bundles: Mapping[str, Bundle], running: str | None
) -> list[Finding]:
    """One finding per view. A camera that a running daemon has is left alone."""
    findings = []
    for camera in (settings.camera, *settings.views):
        name = f"camera {camera.camera_id}" if settings.views else "camera"
        if running is not None and camera.kind not in SHARED_KINDS:
            findings.append(Finding(Level.NOTE, name, f"not opened: {running} has it"))
            continue
        findings.append(_check(name, camera, bundles.get(camera.camera_id)))
    return findings


def _check(name: str, settings: CameraSettings, bundle: Bundle | None) -> Finding:
    by_wire = settings.mode is CameraMode.HARDWARE or settings.trigger_source != "software"
    try:
        frame = _one_frame(settings)
    except CameraTimeoutError as error:
        if by_wire:
            return Finding(
                Level.NOTE,
                name,
                f"{settings.kind} opens; no exposure within {settings.timeout_s:g} s",
                f"send one pulse to {settings.trigger_source} while this runs",
            )
        return failure(name, error)
    except MetalEdgeError as error:
        return failure(name, error)
    return _judge(name, settings, frame, bundle)


def _one_frame(settings: CameraSettings) -> Frame:
    camera = create_camera(settings, SystemClock())
    try:
        camera.open()
        if settings.mode is CameraMode.TRIGGERED:
            camera.trigger(None)
        return camera.grab(settings.timeout_s)
    finally:
        camera.close()


def _judge(name: str, settings: CameraSettings, frame: Frame, bundle: Bundle | None) -> Finding:
    height, width = frame.image.shape[:2]
    found = f"{settings.kind} gave a {width}x{height} frame ({frame.frame_id})"
    if bundle is not None:
        wanted = bundle.manifest.preprocess
        size = (wanted.source_width, wanted.source_height)
        if None not in size and size != (width, height):
            return Finding(
                Level.FAIL,
                name,
                f"{found}, but {bundle.path} was made for {size[0]}x{size[1]}",
                "set the camera to that size, or train on its pictures; each part is `unknown` now",
            )
    fault = FrameChecks(settings.checks, live=False).fault(frame.image)
    if fault is not None:
        return Finding(Level.WARN, name, f"{found}: {fault}", "look at lens, light and exposure")
    return Finding(Level.OK, name, found)
