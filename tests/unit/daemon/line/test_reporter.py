"""The last moment before a decision leaves the house."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from support.broker import wait_until
from support.line_rig import Rig, SilentBroker

from metal_edge.daemon.line import triggers


class SlowDisk(SilentBroker):
    """The note of each event takes until `works` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[dict[str, Any]] = []
        self.works = threading.Event()

    def begin_event(self, event_id: str, encoded: bytes) -> None:
        payload = json.loads(encoded)
        self.noted.append(payload)
        wait_ns = payload["deadline_ns"] - payload["t_publish_ns"] + 20_000_000
        self.works.wait(wait_ns / 1e9)


def slow(rig: Rig) -> SlowDisk:
    broker = SlowDisk()
    rig.broker = broker
    rig.parts.reporter._publisher = broker  # type: ignore[assignment]
    return broker


def test_a_pass_that_had_to_wait_for_the_disk_is_told_as_unknown() -> None:
    rig = Rig()
    broker = slow(rig)
    with rig:
        rig.trigger("t1", deadline_ms=300)
        assert rig.verdicts(1) == [("t1", "unknown", "deadline_missed")]
        assert broker.noted[0]["verdict"] == "pass"  # it was one when the wait began
        told = broker.decisions[0]
        assert told["t_publish_ns"] > told["deadline_ns"]
        assert [e["verdict"] for e in broker.events] == ["unknown"]
        assert rig.parts.reporter.counts() == {"pass": 0, "reject": 0, "unknown": 1}
        broker.works.set()
        rig.trigger("t2")
        assert rig.verdicts(2)[1] == ("t2", "pass", "ok")
        assert [d["seq"] for d in broker.decisions] == [1, 2]


def test_a_reject_stays_one_however_late() -> None:
    rig = Rig()
    slow(rig)
    with rig:
        rig.camera.always = 200
        rig.trigger("t1", deadline_ms=300)
        assert rig.verdicts(1) == [("t1", "reject", "score_at_or_above_threshold")]


def test_a_disarm_that_comes_while_the_disk_is_waited_for_counts() -> None:
    rig = Rig()
    broker = slow(rig)
    with rig:
        rig.trigger("t1")
        wait_until(lambda: broker.noted, "the note")
        rig.command("disarm")
        assert [answer["status"] for answer in rig.answers] == ["accepted", "done"]
        broker.works.set()
        assert rig.verdicts(1) == [("t1", "unknown", "disarmed")]


def test_a_trigger_id_that_comes_round_again_is_another_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A PLC's counter of 16 bits does that within a session. Copies of one event keep its id."""
    monkeypatch.setattr(triggers, "REMEMBERED_IDS", 1)
    rig = Rig()
    broker = slow(rig)
    broker.works.set()
    with rig:
        for number, trigger_id in enumerate(("t1", "t2", "t1"), 1):
            rig.trigger(trigger_id)
            rig.verdicts(number)
    ids = [decision["event_id"] for decision in broker.decisions]
    assert len(set(ids)) == 3
    assert [note["event_id"] for note in broker.noted] == ids
    assert [event["event_id"] for event in broker.events] == ids
