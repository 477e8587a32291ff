"""PLC simulator, broker and the real daemon: what the daemon says is what the gate does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.broker import wait_until
from support.daemon_process import STATION, Daemon, write_settings
from support.tiny_bundle import build_bundle, write_image

from metal_edge.demo.broker import LocalBroker

PARTS = 400  # a minute at most; the run is ended when enough was seen
DEFECTIVE = {k for k in range(PARTS) if k % 5 == 3}
PATIENCE_S = 60.0


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[Path, LocalBroker, ExitStack]]:
    build_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    for k in range(PARTS):
        path = tmp_path / "images" / f"P-{k:06d}.png"
        write_image(path, 20, spot=8 if k in DEFECTIVE else 0)
    with ExitStack() as stack:
        broker = stack.enter_context(LocalBroker())
        write_settings(tmp_path / "line.toml", broker, decision={"deadline_ms": 1000})
        yield tmp_path, broker, stack


def start_plc(folder: Path, port: int, parts: int, stack: ExitStack) -> subprocess.Popen[bytes]:
    options = {
        "port": port,
        "root": STATION,
        "parts": parts,
        "period-ms": 150,
        "gate-delay-ms": 700,
        "heartbeat-ms": 300,
        "dwell-ms": "any",  # the folder camera shows the part that the trigger names
        "stop-after-s": "never",
        "stop-after-rejects": "never",
        "log": folder / "gate.jsonl",
    }
    words = [f"--{key}={value}" for key, value in options.items()]
    out = stack.enter_context((folder / "plc.out").open("wb"))
    process = subprocess.Popen(
        [sys.executable, "-m", "metal_edge.demo.plc", *words], stdout=out, stderr=out
    )
    stack.callback(lambda: (process.kill(), process.wait()))
    return process


def records(folder: Path) -> list[dict[str, Any]]:
    log = folder / "gate.jsonl"
    return [json.loads(text) for text in log.read_text().splitlines()] if log.exists() else []


def test_good_parts_pass_and_defective_ones_do_not(
    line: tuple[Path, LocalBroker, ExitStack],
) -> None:
    folder, broker, stack = line
    stack.enter_context(Daemon(folder / "line.toml"))
    plc = start_plc(folder, broker.port, 20, stack)
    assert plc.wait(PATIENCE_S) == 0, (folder / "plc.out").read_text()
    for k, record in enumerate(records(folder)):
        wanted = "reject_verdict" if k in DEFECTIVE else "pass_verdict"
        assert record["cause"] == wanted, record
        assert 0 < record["latency_ms"] < 700
        assert record["frame_id"]
    summary = json.loads((folder / "plc.out").read_text().splitlines()[-1])
    assert (summary["logged"], summary["malformed_messages"], summary["triggers_refused"]) == (
        20,
        0,
        0,
    )


def test_kill_9_again_and_again_lets_nothing_uninspected_through(
    line: tuple[Path, LocalBroker, ExitStack],
) -> None:
    folder, broker, stack = line
    daemon = stack.enter_context(Daemon(folder / "line.toml"))
    plc = start_plc(folder, broker.port, PARTS, stack)
    dead: list[tuple[int, int]] = []
    for _ in range(3):
        seen = len(records(folder))
        wait_until(
            lambda seen=seen: any(r["gate"] == "pass" for r in records(folder)[seen:]), "a pass", 30
        )
        daemon.process.kill()
        daemon.process.wait()
        killed = time.time_ns()
        # the next daemon starts only once a part has come while there was none
        wait_until(
            lambda killed=killed: records(folder)[-1]["t_trigger_utc_ns"] > killed, "a part", 30
        )
        dead.append((killed, time.time_ns()))
        daemon = stack.enter_context(Daemon(folder / "line.toml"))
    seen = len(records(folder))
    wait_until(lambda: any(r["gate"] == "pass" for r in records(folder)[seen:]), "a pass")
    plc.terminate()
    assert plc.wait(PATIENCE_S) == 130, (folder / "plc.out").read_text()
    logged = records(folder)
    for k, record in enumerate(logged):
        uninspected = any(a < record["t_trigger_utc_ns"] < b for a, b in dead)
        if k in DEFECTIVE or uninspected:
            assert record["gate"] == "reject", record
    assert {r["cause"] for r in logged} >= {"pass_verdict", "daemon_offline"}
