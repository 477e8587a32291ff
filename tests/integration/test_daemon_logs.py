"""A real daemon's log, in JSON and for the journal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.broker import Broker, Listener, find_mosquitto
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
