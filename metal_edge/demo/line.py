"""The live half of the demo: real broker, real daemon, PLC, each its own process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metal_edge.demo.broker import LocalBroker
from metal_edge.errors import MetalEdgeError, UnavailableError
from metal_edge.settings import StationSettings

STATION = StationSettings(
    enterprise="demo", site="here", area="press-shop", line="line-1", station="flange-top"
)
_STOP_S = 10.0


@dataclass(frozen=True)
class LinePlan:
    """What the line runs.

    Attributes:
        folder: where settings, logs and the gate log go.
        bundle: the bundle to serve.
        camera_toml: the `[camera]` section, as TOML.
        part_ids: in conveyor order.
        period_ms, gate_delay_ms: the conveyor.
    """

    folder: Path
    bundle: Path
    camera_toml: str
    part_ids: tuple[str, ...]
    period_ms: float
    gate_delay_ms: float

    @property
    def gate_log(self) -> Path:
        """The PLC's log."""
        return self.folder / "gate.jsonl"


def run_line(plan: LinePlan, on_part: Callable[[int, int], None]) -> None:
    """Runs every part past the camera and the gate; leaves `plan.gate_log`.

    Raises:
        UnavailableError: no mosquitto.
        MetalEdgeError: daemon or PLC failed; names the log that says why.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    ids = plan.folder / "parts.txt"
    ids.write_text("".join(f"{part}\n" for part in plan.part_ids), encoding="utf-8")
    with LocalBroker() as broker:
        settings = plan.folder / "line.toml"
        settings.write_text(_settings(plan, broker.port), encoding="utf-8")
        log = plan.folder / "daemon.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "metal_edge", "run", "--config", str(settings)]
            daemon = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                _run_plc(plan, broker.port, ids, daemon, on_part)
            finally:
                code = _stop(daemon)
        if code != 0:
            raise MetalEdgeError(f"the daemon ended with exit code {code}", f"see {log}")


def _settings(plan: LinePlan, port: int) -> str:
    station = "\n".join(f'{k} = "{v}"' for k, v in STATION.model_dump().items())
    return (
        f"bundle = {json.dumps(str(plan.bundle.resolve()))}\n\n"
        f"[station]\n{station}\n\n"
        f"[camera]\n{plan.camera_toml}\n"
        f"[mqtt]\nport = {port}\n\n"
        f"[decision]\ndeadline_ms = {plan.gate_delay_ms:g}\n"
    )


def _run_plc(
    plan: LinePlan,
    port: int,
    ids: Path,
    daemon: subprocess.Popen[bytes],
    on_part: Callable[[int, int], None],
) -> None:
    log = plan.folder / "plc.log"
    command = [
        *(sys.executable, "-m", "metal_edge.demo.plc", "--port", str(port)),
        *("--root", STATION.topic_root, "--part-ids", str(ids), "--log", str(plan.gate_log)),
        *("--period-ms", f"{plan.period_ms:g}", "--gate-delay-ms", f"{plan.gate_delay_ms:g}"),
        # The demo shows what becomes of every part, however many are bad in a row.
        *("--stop-after-s", "never", "--stop-after-rejects", "never"),
        # Its cameras show the part that the trigger names, however late.
        *("--dwell-ms", "any"),
        *("--start-timeout", "60", "--progress-json"),
    ]
    with log.open("wb") as errors:
        plc = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        threading.Thread(target=_end_together, args=(daemon, plc), daemon=True).start()
        try:
            for line in plc.stdout or ():
                event = json.loads(line)
                if event["event"] == "gate":
                    on_part(event["done"], event["parts"])
            code = plc.wait()
        finally:
            _stop(plc)
    if code != 0:
        reason = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UnavailableError(
            f"the PLC simulator ended with exit code {code} ({reason[-1] if reason else 'no log'})",
            f"see {plan.folder / 'daemon.log'}",
        )


def _end_together(daemon: subprocess.Popen[bytes], plc: subprocess.Popen[str]) -> None:
    """A PLC need not wait for a daemon that failed to start."""
    if daemon.wait() != 0:
        plc.terminate()


def _stop(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> int:
    """Asks a child to end, insists after a while, and returns its exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
