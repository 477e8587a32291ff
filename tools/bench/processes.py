"""The daemon as a process: how soon it decides, and what importing it costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from metal_edge.bundle import Bundle
from metal_edge.demo.broker import LocalBroker
from metal_edge.errors import MetalEdgeError
from metal_edge.settings import StationSettings

LIMIT_S = 30.0
# Installed packages come with their bytecode, which an environment for development may switch off.
_BYTECODE = {"PYTHONPYCACHEPREFIX": str(Path("build/bench/bytecode").resolve())}
_LOOK_S = 0.2  # how often a daemon that has not decided is looked after
PART = "part-1"
HEAVY = ("torch", "onnx", "sklearn", "safetensors", "tensorrt")
_IMPORT = f"""
import time
begun = time.perf_counter()
import metal_edge.daemon.service
took = time.perf_counter() - begun
import json, sys
print(json.dumps([took, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def time_start(bundle: Bundle, picture: Path, folder: Path, seconds: Callable[[], float]) -> float:
    """Seconds from starting `metal-edge run` to its first decision, heard at a real broker.

    A client asks for the verdict the moment the daemon says that it is online, as a PLC would.

    Args:
        picture: what the folder camera shows; of the size that the bundle was trained on.
        folder: for settings and log; made anew.
        seconds: a monotonic clock.

    Raises:
        UnavailableError: no mosquitto.
        MetalEdgeError: the daemon did not decide in LIMIT_S; names its log.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "camera").mkdir(parents=True)
    shutil.copyfile(picture, folder / "camera" / f"{PART}{picture.suffix}")
    station = StationSettings()
    log = folder / "daemon.log"
    with LocalBroker() as broker:
        config = folder / "line.toml"
        config.write_text(_settings(bundle, broker.port), encoding="utf-8")
        plc = _Plc(broker.port, station.topic_root, seconds)
        command = [sys.executable, "-m", "metal_edge", "run", "--config", str(config.resolve())]
        with log.open("wb") as output:
            begun = seconds()
            daemon = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=folder, env=_environment()
            )
        try:
            decided = _wait(plc, daemon, log, seconds)
        finally:
            daemon.terminate()
            try:
                daemon.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
            plc.close()
    return decided - begun


def _wait(
    plc: _Plc, daemon: subprocess.Popen[bytes], log: Path, seconds: Callable[[], float]
) -> float:
    """When the decision came; a daemon that ends is not waited for."""
    end = seconds() + LIMIT_S
    while seconds() < end:
        decided = plc.wait(_LOOK_S)
        if decided is not None:
            return decided
        if daemon.poll() is not None:
            raise MetalEdgeError(
                f"the daemon ended with exit code {daemon.returncode}", f"see {log}"
            )
    raise MetalEdgeError(f"the daemon did not decide within {LIMIT_S:g} s", f"see {log}")


def _environment() -> dict[str, str]:
    """This process's, but that bytecode is kept, as it is where the package is installed."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | _BYTECODE


def _settings(bundle: Bundle, port: int) -> str:
    return (
        f"bundle = {json.dumps(str(bundle.path.resolve()))}\n"
        '[camera]\nkind = "folder"\nuri = "camera"\n'
        f"[mqtt]\nport = {port}\n"
        "[decision]\ndeadline_ms = 5000\n"
    )


class _Plc:
    """Sends one trigger when the daemon is online, and notes when the decision comes."""

    def __init__(self, port: int, root: str, seconds: Callable[[], float]) -> None:
        self._root, self._seconds = root, seconds
        self._decided: float | None = None
        self._heard, self._ready = threading.Event(), threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not self._ready.wait(LIMIT_S):
            raise MetalEdgeError("the private broker does not answer", "try again")

    def wait(self, limit_s: float) -> float | None:
        """When the decision came, by the clock; None if it did not."""
        self._heard.wait(limit_s)
        return self._decided

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: paho.Client, *_unused: Any) -> None:
        client.subscribe(f"{self._root}/#", qos=1)

    def _on_subscribe(self, *_unused: Any) -> None:
        self._ready.set()

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        now, name = self._seconds(), message.topic.rpartition("/")[2]
        if name == "state" and json.loads(message.payload).get("status") == "online":
            trigger = json.dumps({"trigger_id": "first", "part_id": PART})
            client.publish(f"{self._root}/cmd/trigger", trigger, qos=1)
        elif name == "decision" and self._decided is None:
            self._decided = now
            self._heard.set()


def time_import() -> tuple[float, list[str]]:
    """Seconds to import the daemon in a fresh interpreter, and which of HEAVY came along."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
        env=_environment(),
    )
    took, heavy = json.loads(done.stdout)
    return took, heavy
