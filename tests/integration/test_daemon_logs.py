"""A real daemon's log, in JSON and for the journal."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.broker import Broker, Listener, find_mosquitto, wait_until
from support.daemon_process import STATION, Daemon, write_settings
from support.tiny_bundle import DARK, build_bundle, write_image

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")


def test_every_line_is_json_and_tells_the_part(tmp_path: Path) -> None:
    build_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "0.png", DARK)
    with Broker(tmp_path) as broker:
        config = write_settings(tmp_path / "press.toml", broker, log={"format": "json"})
        with Listener(broker) as heard, Daemon(config) as daemon:
            daemon.armed(heard)
            heard.trigger(STATION, "t1", "part-9")
            said = heard.verdict("t1")
            assert daemon.stop() == 0
            lines = [json.loads(line) for line in daemon.log.splitlines()]
    (about,) = [line for line in lines if line.get("part_id") == "part-9"]
    for key in ("seq", "trigger_id", "frame_id", "verdict", "reason", "score"):
        assert about[key] == said[key]
    assert (about["line"], about["station"], about["level"]) == ("press", STATION, "INFO")


@pytest.mark.parametrize("writable", [True, False], ids=["home", "no home"])
def test_libraries_neither_write_home_nor_into_the_log(tmp_path: Path, writable: bool) -> None:
    """ONNX Runtime's telemetry would: a data base in the one case, a warning in the other."""
    build_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "0.png", DARK)
    home = tmp_path / "home"
    if writable:
        home.mkdir()
    else:
        home.touch()
    environment = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_DATA_HOME": str(home)}
    with Broker(tmp_path) as broker:
        config = write_settings(tmp_path / "press.toml", broker, log={"format": "json"})
        with Listener(broker) as heard, Daemon(config, environment) as daemon:
            daemon.armed(heard)
            heard.trigger(STATION, "t1", "part-9")
            heard.verdict("t1")
            assert daemon.stop() == 0
            assert all(line.startswith("{") for line in daemon.log.splitlines())
    assert home.is_file() or list(home.rglob("*")) == []


def test_priorities_in_a_journal(tmp_path: Path) -> None:
    build_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "0.png", DARK)
    log = tmp_path / "log"
    with Broker(tmp_path) as broker, log.open("w") as stream:
        config = write_settings(
            tmp_path / "line.toml", broker, camera={"mode": "latest", "fps": 100}
        )
        found = os.fstat(stream.fileno())
        journal = f"{found.st_dev}:{found.st_ino}"
        subprocess.run(
            [sys.executable, "-m", "metal_edge.daemon", "--config", str(config)],
            stderr=stream,
            env={**os.environ, "JOURNAL_STREAM": journal},
            timeout=30,
            check=True,
        )
    lines = log.read_text().splitlines()
    assert lines
    assert all(re.match(r"<[2-7]>(CRITICAL|ERROR|WARNING|INFO) \w", line) for line in lines)
    assert any(line.startswith("<4>WARNING") for line in lines)


def test_a_log_that_nobody_takes_stops_neither_decisions_nor_heartbeats(tmp_path: Path) -> None:
    """The reader stands still, as a journald that hangs; then it goes on."""
    build_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "0.png", DARK)
    taken = tmp_path / "taken"
    with Broker(tmp_path) as broker, taken.open("wb") as log:
        config = write_settings(tmp_path / "line.toml", broker, camera={"loop": True})
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        journald = subprocess.Popen(["cat"], stdin=reader, stdout=log)
        command = [sys.executable, "-m", "metal_edge.daemon", "--config", str(config)]
        daemon = subprocess.Popen(command, stderr=writer)
        os.close(reader)
        os.close(writer)
        try:
            with Listener(broker) as heard:
                wait_until(lambda: heard.all("state"), "the daemon's birth")
                journald.send_signal(signal.SIGSTOP)
                for number in range(60):  # 150 bytes of log each
                    heard.trigger(STATION, f"t{number}", "part")
                    heard.verdict(f"t{number}")
                beats = len(heard.all("heartbeat"))
                wait_until(lambda: len(heard.all("heartbeat")) > beats + 2, "heartbeats")
                journald.send_signal(signal.SIGCONT)
                daemon.send_signal(signal.SIGTERM)
                assert daemon.wait(20) == 0
            journald.wait(10)
        finally:
            for process in (daemon, journald):
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait(10)
    text = taken.read_text()
    assert all(f"trigger=t{number} " in text for number in range(60))
