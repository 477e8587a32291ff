"""A private MQTT broker for the demo and the tests: the real mosquitto, on loopback only."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from metal_edge.errors import UnavailableError

HOST = "127.0.0.1"
SYSTEM_PROGRAMS = "/usr/sbin"  # where Debian puts it, and not on every PATH
PORT_ATTEMPTS = 5  # another process may take the free port before mosquitto does
READY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.02


class LocalBroker:
    """Runs mosquitto while the `with` block lasts; anonymous, without persistence.

    The broker dies with the thread that entered the block, even on SIGKILL: it is started
    through setpriv(1) with a parent-death signal, where that tool exists. Enter the block from
    a thread that outlives it. Credentials that change clear that signal, so mosquitto keeps the
    caller's user instead of dropping from root to its own.

    Attributes:
        host, port: where it listens; `port` is chosen on entry.
        process: the broker, for tests that kill or stop it.

    Raises:
        UnavailableError: mosquitto is not installed, or does not start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.host = HOST
        self.port = 0

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running broker.

        Raises:
            UnavailableError: outside the `with` block.
        """
        if self._process is None:
            raise UnavailableError("the private broker is not running", "use it in a with block")
        return self._process

    def __enter__(self) -> LocalBroker:
        command = _command()
        self._folder = tempfile.TemporaryDirectory(prefix="metal-edge-broker-")
        try:
            for _ in range(PORT_ATTEMPTS):
                if self._start(command, Path(self._folder.name)):
                    return self
            raise UnavailableError(
                f"mosquitto found no free port on {HOST} in {PORT_ATTEMPTS} attempts",
                "look for what takes the ports (ss -ltn)",
            )
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self, command: list[str], folder: Path) -> bool:
        """True once our mosquitto answers; False when something else has the port."""
        self.port = _free_port()
        config, log = folder / "mosquitto.conf", folder / "mosquitto.log"
        config.write_text(
            f"listener {self.port} {HOST}\n"
            "allow_anonymous true\n"
            "set_tcp_nodelay true\n"
            "persistence false\n"
            "log_dest stderr\n"
            "log_type all\n" + _user_line(),
            encoding="utf-8",
        )
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*command, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        deadline = self._clock() + READY_TIMEOUT_S
        while self._clock() < deadline:
            if self._process.poll() is not None:
                text = log.read_text(errors="replace")
                if "Address already in use" in text:
                    return False
                raise UnavailableError(
                    f"mosquitto exited with {self._process.returncode} ({_last_line(text)})",
                    "check the mosquitto installation",
                )
            if _answers(self.port, log):
                return True
            time.sleep(POLL_S)  # a readiness poll, bounded by the deadline
        raise UnavailableError(
            f"mosquitto did not answer on {HOST}:{self.port} within {READY_TIMEOUT_S:g} s",
            "try again on a less busy machine",
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # SIGKILL also ends a broker that a test has stopped
                process.wait()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def find_mosquitto() -> str:
    """Path of the mosquitto executable, in PATH or in /usr/sbin.

    Raises:
        UnavailableError: it is not installed.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=SYSTEM_PROGRAMS)
    if found is None:
        raise UnavailableError(
            "mosquitto, the MQTT broker, is not installed", "apt-get install mosquitto"
        )
    return found


def _command() -> list[str]:
    mosquitto = find_mosquitto()
    setpriv = shutil.which("setpriv")
    return [mosquitto] if setpriv is None else [setpriv, "--pdeathsig", "KILL", mosquitto]


def _user_line() -> str:
    """Keeps the caller's user; one without a name is not root, so nothing would be dropped."""
    try:
        return f"user {pwd.getpwuid(os.geteuid()).pw_name}\n"
    except KeyError:
        return ""


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int, log: Path) -> bool:
    """Connects with MQTT 5 under a unique name, and looks for that name in our broker's log.

    Without the second half, another broker that took the port first would pass for ours.
    """
    name = f"probe-{uuid.uuid4().hex[:12]}"
    client_id = len(name).to_bytes(2, "big") + name.encode("ascii")
    variable = b"\x00\x04MQTT\x05\x02\x00\x05\x00"  # version 5, clean start, keepalive 5 s
    connect = bytes([0x10, len(variable) + len(client_id)]) + variable + client_id
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as link:
            link.sendall(connect)
            answer = link.recv(4)  # CONNACK: 0x20, length, flags, reason code
            link.sendall(b"\xe0\x00")  # DISCONNECT
    except OSError:
        return False
    if len(answer) < 4 or answer[0] != 0x20 or answer[3] != 0:
        return False
    return name in log.read_text(errors="replace")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
