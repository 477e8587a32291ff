"""A daemon whose camera is triggered by wire, played by a folder camera; and the gate behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.broker import Listener, wait_until
from support.daemon_process import STATION
from support.tiny_bundle import write_image

if TYPE_CHECKING:
    from conftest import StartDaemon


@pytest.fixture
def parts(line: Path) -> Path:
    """Ten good parts and one bad one, the sixth, in the order of their names."""
    for picture in (line / "images").iterdir():
        picture.unlink()
    for number in range(1, 12):
        spot = 8 if number == 6 else 0
        write_image(line / "images" / f"{number:02}.png", 51, spot=spot)
    return line


def exposures(listener: Listener) -> list[tuple[str, str, str | None]]:
    decisions: list[dict[str, Any]] = [d.data for d in listener.all("decision")]
    return [(d["trigger_id"], d["reason"], d["frame_id"]) for d in decisions]


def test_every_exposure_has_one_verdict_in_order_also_those_without_a_frame(
    start: StartDaemon, listener: Listener, parts: Path
) -> None:
    faults = {"drop": "3,4", "torn": "8", "restart": "10"}
    wired = {"mode": "hardware", "trigger_source": "Line1", "fps": 20, "options": faults}
    daemon = start(camera=wired)
    assert daemon.exit_code() == 0
    listener.wait("state", lambda h: h.data["problems"] == ["stopped"])
    bad = "score_at_or_above_threshold"
    assert exposures(listener) == [
        ("hw-1", "ok", "01.png"),
        ("hw-2", "ok", "02.png"),
        ("hw-3", "lost_trigger", None),
        ("hw-4", "lost_trigger", None),
        ("hw-5", "ok", "05.png"),
        ("hw-6", bad, "06.png"),
        ("hw-7", "ok", "07.png"),
        ("hw-8", "torn_frame", None),
        ("hw-9", "ok", "09.png"),
        ("hw-10", "lost_trigger", "10.png"),
        ("hw-11", "ok", "11.png"),
    ]
    assert all(d.data["part_id"] is None for d in listener.all("decision"))
    assert "began anew" in daemon.log


def test_a_wired_line_takes_no_trigger_commands(
    start: StartDaemon, listener: Listener, parts: Path
) -> None:
    start(camera={"mode": "hardware", "fps": 1, "loop": True}).armed(listener)
    listener.trigger(STATION, "t1", "p")
    answer = listener.wait("replies").data
    assert (answer["status"], answer["trigger_id"]) == ("refused", "t1")
    assert "hardware" in answer["reason"]


def test_disarmed_by_command_no_part_passes_until_armed(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    start().armed(listener)
    listener.command(STATION, b'{"reason": "cleaning"}', b"d", verb="disarm")
    wait_until(lambda: listener.all("replies"), "the answer")
    listener.trigger(STATION, "t1", "good")
    assert listener.verdict("t1")["reason"] == "disarmed"
    listener.wait("heartbeat", lambda h: not h.data["healthy"] and h.data["state"] == "disarmed")
    state = listener.wait("state", lambda h: h.data["status"] == "degraded").data
    assert state["problems"] == ["disarmed: cleaning"]
    listener.wipe()
    listener.command(STATION, b"{}", b"a", verb="arm")
    listener.wait("heartbeat", lambda h: h.data["healthy"])
    listener.trigger(STATION, "t2", "good")
    assert listener.verdict("t2")["verdict"] == "pass"


def test_the_gate_is_told_and_ends_the_deadline(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    gate = {"offset_ms": 800, "encoder_counts": 1500, "margin_ms": 50}
    start(gate=gate).armed(listener)
    listener.trigger(STATION, "t1", "good", encoder=100)
    decision = listener.verdict("t1")
    told = decision["gate"]
    assert (decision["encoder"], told["encoder_gate"]) == (100, 1600)
    assert told["t_gate_ns"] - decision["deadline_ns"] == 50_000_000
    assert 0 < told["t_gate_ns"] - decision["t_publish_ns"] < 800_000_000
