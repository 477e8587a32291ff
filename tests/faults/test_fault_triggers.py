"""Triggers that come twice, late, out of order, or are nonsense: one verdict per part."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from conftest import Trial
from rig import Rig
from support.broker import wait_until
from support.daemon_process import STATION

GARBAGE: list[bytes] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"x" * 60_000,
    json.dumps({"trigger_id": "lonely"}).encode(),
    json.dumps({"part_id": "P-000001"}).encode(),
    json.dumps({"trigger_id": "a b", "part_id": "P-000001"}).encode(),
    json.dumps({"trigger_id": "t", "part_id": "../../etc/passwd\n"}).encode(),
    json.dumps({"trigger_id": "t", "part_id": "\u202eP"}).encode(),
    json.dumps({"trigger_id": "t", "part_id": "P", "deadline_ms": -1}).encode(),
    b'{"trigger_id": "t", "part_id": "P", "deadline_ms": NaN}',
    json.dumps({"trigger_id": "t", "part_id": "P", "verdict": "pass"}).encode(),
    b"[" * 4000,
]


@pytest.mark.fault(
    "duplicate and reordered triggers",
    "each trigger of 60 parts is sent again at once, and once more after the next five",
)
def test_duplicates(rig: Rig, trial: Trial) -> None:
    rig.start()
    since = len(genuine(rig))
    for number in range(since, since + 60):
        wait_until(lambda n=number: len(genuine(rig)) > n, "a trigger", 20)
        own = genuine(rig)
        again(rig, own[-1])
        if len(own) > 5:
            again(rig, own[-6])
    rig.wait_parts(10)
    audit = trial.judge(rig.finish())
    refused = [h for h in rig.recorder.all("replies") if h.data["status"] == "refused"]
    assert len(refused) >= 60
    assert audit.causes.get("duplicate_decision", 0) == 0
    assert audit.causes.get("contradictory_decisions", 0) == 0


def genuine(rig: Rig) -> list[dict[str, Any]]:
    """What the PLC sent: the copies have the same content."""
    seen = {h.data["trigger_id"]: h.data for h in rig.recorder.all("trigger")}
    return list(seen.values())


def again(rig: Rig, command: dict[str, Any]) -> None:
    rig.recorder.command(STATION, json.dumps(command).encode(), b"copy")


@pytest.mark.fault(
    "missing part_id, odd characters, giant payloads",
    f"{len(GARBAGE)} malformed commands, three times over, between the triggers of the line",
)
def test_garbage(rig: Rig, trial: Trial) -> None:
    rig.start()
    since = time.monotonic_ns()
    for payload in GARBAGE * 3:
        rig.recorder.command(STATION, payload, b"garbage")
    answers = [h for h in rig.recorder.all("replies") if h.correlation == b"garbage"]
    wait_until(
        lambda: (
            sum(h.correlation == b"garbage" for h in rig.recorder.all("replies"))
            == 3 * len(GARBAGE)
        ),
        f"an answer to each (got {len(answers)})",
    )
    rig.recovery_s(since, 10)
    rig.wait_parts(10)
    audit = trial.judge(rig.finish())
    answers = [h for h in rig.recorder.all("replies") if h.correlation == b"garbage"]
    assert {h.data["status"] for h in answers} == {"refused"}
    assert all(h.data["reason"] for h in answers)
    own = {g["trigger_id"] for g in rig.gate()}
    strange = {h.data["trigger_id"] for h in rig.recorder.all("decision")} - own
    assert all("-" in trigger_id for trigger_id in strange), "a verdict on garbage"
    assert audit.broken_rules == []


@pytest.mark.fault(
    "trigger late",
    "SIGSTOP of mosquitto for 0.25 s, 20 times: triggers arrive when the next parts stand there",
)
def test_trigger_late(rig: Rig, trial: Trial) -> None:
    """In time for the gate, and about the wrong part: only rule 7 of docs/fail-safe.md helps."""
    rig.start()
    since = time.monotonic_ns()
    for _ in range(20):
        rig.wait_parts(3)
        rig.broker.pause()
        stopped = time.monotonic_ns()
        wait_until(lambda t=stopped: time.monotonic_ns() - t > 0.25e9, "the pause")
        rig.broker.resume()
    rig.recovery_s(time.monotonic_ns(), 20)
    assert rig.caused("late_exposure", since) > 5
    trial.judge(rig.finish())
