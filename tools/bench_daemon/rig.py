"""A broker, a daemon and a subscriber, each a thing of its own, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from metal_edge.errors import UnavailableError

ROOT = "metal/v1/bench/site/area/line/station"
REPOSITORY = Path(__file__).parents[2]
HOST = "127.0.0.1"
PATIENCE_S = 30.0


def wait_for(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Polls until `condition` gives something true.

    Raises:
        UnavailableError: not in time.
    """
    end = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise UnavailableError(f"{what}: not within {patience_s:g} s", "see build/ for logs")
        time.sleep(0.01)
    return value


class Mosquitto:
    """The real broker; keeps its port over restarts."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = int(probe.getsockname()[1])
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it takes connections."""
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise UnavailableError("mosquitto is not installed", "apt-get install mosquitto")
        config = self._folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.port} {HOST}\nallow_anonymous true\nset_tcp_nodelay true\n"
            f"persistence false\n{'user root' if os.geteuid() == 0 else ''}\n",
            encoding="utf-8",
        )
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log)
        wait_for(self._accepts, "mosquitto")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.kill()

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0


def _send_at_once(client: paho.Client, data: Any, sock: Any) -> None:
    """A trigger must not wait for the broker's delayed acknowledgement."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Subscriber:
    """Hears everything of the station; stamps each message before it is read.

    Args:
        keep: whether a decision is kept; all else is counted only. The newest heartbeat is.
    """

    def __init__(self, port: int, *, keep: bool = True) -> None:
        self.decisions: list[tuple[int, dict[str, Any]]] = []  # heard at, UTC ns
        self.heartbeats: list[dict[str, Any]] = []
        self.last_beat: dict[str, Any] = {}
        self.state = ""
        self.events = 0
        self.decided = 0
        self._keep = keep
        self._subscribed = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *unused: self._subscribed.set()
        self._client.on_message = self._heard
        self._client.on_socket_open = _send_at_once
        self._client.reconnect_delay_set(1, 1)
        self._client.connect(HOST, port)
        self._client.loop_start()
        wait_for(self._subscribed.is_set, "the subscription")

    def trigger(self, number: int) -> None:
        """One cmd/trigger."""
        payload = {"trigger_id": f"t{number}", "part_id": f"p{number}"}
        self._client.publish(f"{ROOT}/cmd/trigger", json.dumps(payload), qos=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: paho.Client, *unused: Any) -> None:
        client.subscribe([(f"{ROOT}/+", 1)])

    def _heard(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        now_ns = time.time_ns()
        name = message.topic.rpartition("/")[2]
        if name == "event":
            self.events += 1
            return
        payload = json.loads(message.payload)
        if name == "decision":
            self.decided += 1
            if self._keep:
                self.decisions.append((now_ns, payload))
        elif name == "heartbeat":
            self.last_beat = payload
            if self._keep:
                self.heartbeats.append(payload)
        elif name == "state":
            self.state = str(payload["status"])


class CSubscriber:
    """mosquitto_sub: a subscriber in C, as a PLC's is, that stamps each decision it prints."""

    def __init__(self, folder: Path, port: int) -> None:
        self._path = folder / "heard.txt"
        program = shutil.which("mosquitto_sub")
        if program is None:
            raise UnavailableError("no mosquitto_sub", "apt-get install mosquitto-clients")
        topics = ["-t", f"{ROOT}/decision"]
        command = [program, "-V", "mqttv5", "-h", HOST, "-p", str(port), *topics, "-F", "%U %p"]
        with self._path.open("wb") as sink:
            self._process = subprocess.Popen(command, stdout=sink)

    def decisions(self) -> list[tuple[int, dict[str, Any]]]:
        """When each was heard, UTC in nanoseconds, and what it said."""
        lines = self._path.read_text(encoding="utf-8").splitlines()
        pairs = [line.split(" ", 1) for line in lines]
        return [(int(at.replace(".", "")), json.loads(text)) for at, text in pairs]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)


class Daemon:
    """`python -m metal_edge.daemon` with a pattern camera, as a process of its own."""

    def __init__(self, folder: Path, settings: str) -> None:
        config = folder / "line.toml"
        config.write_text(settings, encoding="utf-8")
        plugin = folder / "plugin" / "pattern-1.0.dist-info"
        plugin.mkdir(parents=True, exist_ok=True)
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: pattern\nVersion: 1.0\n")
        (plugin / "entry_points.txt").write_text(
            "[metal_edge.cameras]\npattern = tools.bench_daemon.camera:PatternCamera\n"
        )
        path = os.pathsep.join((str(plugin.parent), str(REPOSITORY)))
        with (folder / "daemon.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "metal_edge.daemon", "--config", str(config)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
            )

    def armed(self, subscriber: Subscriber) -> None:
        """Waits for its birth."""

        def born() -> bool:
            if self.process.poll() is not None:
                raise UnavailableError("the daemon ended early", "see its daemon.log")
            return subscriber.state == "online"

        wait_for(born, "the daemon's birth")

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)


def settings_text(bundle: Path, port: int, camera: str, more: str = "") -> str:
    """A line.toml around `camera`, lines of its section."""
    return f"""bundle = "{bundle.resolve()}"
heartbeat_hz = 5
[station]
enterprise = "bench"
[mqtt]
port = {port}
[decision]
deadline_ms = 5000
[camera]
kind = "pattern"
{camera}
{more}"""
