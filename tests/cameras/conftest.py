"""Cameras that are not there: pypylon's emulation, Aravis' fake camera, GStreamer's RTSP server.

Collected only when asked for by path (`make test-cameras` installs what they need). A test whose
part is missing is skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.broker import wait_until
from support.camera_stand_ins import (
    FAKE,
    SYSTEM,
    Open,
    Process,
    RtspServer,
    gvcp_is_taken,
    need,
)

from metal_edge.daemon.cameras import Camera, create_camera
from metal_edge.daemon.clock import SystemClock
from metal_edge.settings import CameraSettings

sys.path.append(SYSTEM)
# Before pypylon is imported: two emulated cameras, serial numbers 0815-0000 and 0815-0001.
os.environ["PYLON_CAMEMU"] = "2"


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Open:
    """An open camera; closed at the end."""

    def make(kind: str, **settings: Any) -> Camera:
        camera = create_camera(CameraSettings(kind=kind, **settings), SystemClock())
        request.addfinalizer(camera.close)
        camera.open()
        return camera

    return make


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Callable[..., Process]:
    """Aravis' fake GigE Vision camera on the loopback interface."""
    need("Aravis", "0.8")
    program = shutil.which(FAKE)
    if program is None:
        pytest.skip(f"{FAKE} not found: apt install aravis-tools")

    def start(*arguments: str) -> Process:
        assert not gvcp_is_taken(), "another camera is answering on this machine"
        process = Process([program, "-i", "127.0.0.1", "-s", "GV01", *arguments])
        request.addfinalizer(process.kill)
        wait_until(gvcp_is_taken, "the fake camera")
        return process

    return start


@pytest.fixture
def rtsp() -> Iterator[RtspServer]:
    need("GstRtspServer", "1.0")
    server = RtspServer()
    yield server
    server.send(signal.SIGCONT)
    server.kill()
