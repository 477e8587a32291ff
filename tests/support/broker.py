"""A real mosquitto on a free loopback port, and a client that remembers what it heard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

HOST = "127.0.0.1"


def find_mosquitto() -> str | None:
    """Debian puts it in /usr/sbin, which is not on everybody's PATH."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


PATIENCE_S = 30.0  # on a busy machine; who waits in vain has failed anyway


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Polls until `condition` gives something true; fails the test with `what` after the limit."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"timed out after {timeout_s} s waiting for {what}")
        time.sleep(0.01)


def busy(seconds: float) -> float:
    """A limit that an idle machine keeps, longer by as much as others take their share."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Broker:
    """mosquitto as a child process; keeps its port over restarts.

    Args:
        folder: for its configuration and log.
        extra: lines of mosquitto.conf, such as `password_file ...`; replaces anonymous access.
    """

    def __init__(self, folder: Path, extra: str = "allow_anonymous true") -> None:
        self.host = HOST
        self.port = free_port()
        self._folder = folder
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None

    def also(self, line: str) -> None:
        """One more line of mosquitto.conf, from the next start on."""
        self._extra += f"\n{line}"

    def start(self) -> None:
        program = find_mosquitto()
        assert program is not None
        config = self._folder / "mosquitto.conf"
        # It would give up root for a user that cannot read a private temporary folder.
        text = f"listener {self.port} {HOST}\npersistence false\nuser root\n{self._extra}\n"
        config.write_text(text, encoding="utf-8")
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(config), "-v"], stdout=log, stderr=log
            )
        wait_until(self._accepts, "mosquitto to accept connections")

    def kill(self) -> None:
        """kill -9: no goodbye to anybody."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def reload(self) -> None:
        """Reads password file and ACL again."""
        self._signal(signal.SIGHUP)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _accepts(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "mosquitto.log").read_text()
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex((HOST, self.port)) == 0


@dataclass(frozen=True)
class Heard:
    """One message as it came, and when."""

    topic: str
    name: str
    data: Any
    qos: int
    retain: bool
    expiry: int | None
    correlation: bytes | None
    at: float


class Listener:
    """A paho client that subscribes to everything and can send triggers."""

    def __init__(
        self,
        broker: Broker,
        root: str = "#",
        username: str = "",
        password: str = "",
        *,
        retry_s: float = 1,
        qos: int = 1,
    ):
        self._heard: list[Heard] = []
        self._lock = threading.Lock()
        self._subscribed = threading.Event()
        self._root = root
        self._qos = qos
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"listener-{uuid.uuid4()}",
            protocol=paho.MQTTv5,
        )
        if username:
            self._client.username_pw_set(username, password)
        self._client.reconnect_delay_set(retry_s, retry_s)
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._on_subscribed
        self._client.on_message = self._message
        self._client.on_disconnect = lambda *unused: self._subscribed.clear()
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self.wait_subscribed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def trigger(self, station: str, trigger_id: str, part_id: str, **more: Any) -> None:
        """Sends cmd/trigger with response topic `replies` and the id as correlation data."""
        payload = {"trigger_id": trigger_id, "part_id": part_id, **more}
        self.command(station, json.dumps(payload).encode(), trigger_id.encode())

    def command(
        self,
        station: str,
        payload: bytes,
        correlation: bytes,
        response: str = "replies",
        verb: str = "trigger",
    ) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = response
        properties.CorrelationData = correlation
        info = self._client.publish(f"{station}/cmd/{verb}", payload, qos=1, properties=properties)
        info.wait_for_publish(PATIENCE_S)

    def wipe(self) -> None:
        """Forgets what was heard."""
        with self._lock:
            self._heard.clear()

    def wait_subscribed(self) -> None:
        """Returns when it hears the broker, again if need be."""
        assert self._subscribed.wait(PATIENCE_S)

    def all(self, name: str) -> list[Heard]:
        """Everything heard so far whose topic ends in `name`."""
        with self._lock:
            return [heard for heard in self._heard if heard.name == name]

    def wait(
        self,
        name: str,
        wanted: Callable[[Heard], bool] = lambda heard: True,
        timeout_s: float = PATIENCE_S,
    ) -> Heard:
        """The first message on `.../name` that is wanted; already heard ones count."""

        def first() -> Heard | None:
            return next((heard for heard in self.all(name) if wanted(heard)), None)

        found = wait_until(first, f"a wanted {name} (heard {len(self.all(name))})", timeout_s)
        assert isinstance(found, Heard)
        return found

    def verdict(self, trigger_id: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The decision on one trigger."""
        data = self.wait(
            "decision", lambda heard: heard.data["trigger_id"] == trigger_id, timeout_s
        ).data
        assert isinstance(data, dict)
        return data

    def _connected(self, client: paho.Client, *unused: Any) -> None:
        client.subscribe(self._root, qos=self._qos)

    def _on_subscribed(self, *unused: Any) -> None:
        self._subscribed.set()

    def _message(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        properties = message.properties
        try:
            # NaN is not JSON; Python's parser would let it through.
            content = json.loads(message.payload, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            content = error
        heard = Heard(
            topic=message.topic,
            name=message.topic.rpartition("/")[2],
            data=content,
            qos=message.qos,
            retain=message.retain,
            expiry=getattr(properties, "MessageExpiryInterval", None),
            correlation=getattr(properties, "CorrelationData", None),
            at=time.monotonic(),
        )
        with self._lock:
            self._heard.append(heard)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
