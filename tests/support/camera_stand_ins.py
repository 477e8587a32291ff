"""What plays camera in tests/cameras: processes, and how their frames are waited for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metal_edge.daemon.cameras import Camera, CameraError, CameraTimeoutError
from metal_edge.daemon.cameras.system import load_namespace
from metal_edge.domain import Frame
from support.broker import wait_until

# What the .pth file of docs/cameras.md does.
SYSTEM = "/usr/lib/python3/dist-packages"
FAKE = "arv-fake-gv-camera-0.8"
RTSP_SERVER = Path(__file__).parents[1] / "cameras" / "rtsp_server.py"

Open = Callable[..., Camera]


def need(name: str, version: str) -> None:
    try:
        load_namespace(name, version)
    except CameraError as error:
        pytest.skip(str(error))


def next_frame(camera: Camera, timeout_s: float = 10.0) -> Frame:
    """Waits over silence."""
    found: list[Frame] = []

    def there() -> bool:
        try:
            found.append(camera.grab(0.2))
        except CameraTimeoutError:
            return False
        return True

    wait_until(there, "a frame", timeout_s)
    return found[0]


def silence(camera: Camera) -> str:
    """Waits until the camera gives nothing for 0.3 seconds; the error's words."""
    words: list[str] = []

    def silent() -> bool:
        try:
            camera.grab(0.3)
        except CameraTimeoutError as error:
            words.append(str(error))
            return True
        return False

    wait_until(silent, "silence", 15)
    return words[0]


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


class Process:
    """A process that plays camera, in a group of its own."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": SYSTEM}
        return subprocess.Popen(self.command, env=environment, stdout=subprocess.DEVNULL)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def again(self) -> None:
        self.process = self._spawn()


def gvcp_is_taken() -> bool:
    """Somebody listens on GigE Vision's control port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", 3956))
        except OSError:
            return True
    return False


class RtspServer(Process):
    """GStreamer's RTSP server with `/h264` and `/jpeg`: a ball that moves on a red ground."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        super().__init__([sys.executable, str(RTSP_SERVER), str(self.port)])
        self.listens()

    def listens(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, "the RTSP server has ended"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(answers, "the RTSP server", 20)

    def again(self) -> None:
        super().again()
        self.listens()

    def uri(self, stream: str) -> str:
        return f"rtsp://127.0.0.1:{self.port}/{stream}"
