"""The example of access rules does what its comments say, on a real broker with a real daemon."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.broker import Broker, Listener, find_mosquitto, wait_until
from support.daemon_process import STATION, Daemon, write_settings
from support.wire import Wire

from metal_edge.daemon.mqtt.command_fields import FIELDS

pytestmark = [
    pytest.mark.skipif(
        find_mosquitto() is None or shutil.which("mosquitto_passwd") is None,
        reason="mosquitto is not installed",
    ),
]

EXAMPLE = Path(__file__).parents[2] / "systemd" / "mosquitto-acl.example"
EXAMPLE_ROOT = "metal/v1/acme/ulm/press-shop/press1/cam-top"
USERS = ("press1", "plc1", "panel1", "setup1", "historian", "press2")
MAY = {
    "plc1": {"trigger"},
    "panel1": {"arm", "disarm", "snapshot"},
    "setup1": {"recipe", "golden-check"},
    "historian": set(),
    "press2": set(),
}
PUBLISHED = ("decision", "event", "heartbeat", "state", "model", "config", "reply/plc1/x")
DENIED = "Not authorized"


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Broker]:
    """A broker with the example's rules, for the tests' station; every password is the name."""
    folder = tmp_path / "strict"
    folder.mkdir()
    users, acl = folder / "users", folder / "acl"
    users.touch()
    for name in USERS:
        subprocess.run(["mosquitto_passwd", "-b", str(users), name, name], check=True)
    acl.write_text(EXAMPLE.read_text(encoding="utf-8").replace(EXAMPLE_ROOT, STATION))
    for file in (users, acl):
        file.chmod(0o600)
    with Broker(folder, f"allow_anonymous false\npassword_file {users}\nacl_file {acl}") as running:
        yield running


@pytest.fixture
def daemon(strict: Broker, line: Path) -> Iterator[Daemon]:
    (line / "password").write_text("press1\n")
    user = {"username": "press1", "password_file": "password"}
    with Daemon(write_settings(line / "line.toml", strict, mqtt=user)) as running:
        yield running


def wire(broker: Broker, user: str, *topics: str) -> Wire:
    return Wire(broker, *(f"{STATION}/{topic}" for topic in topics), username=user, password=user)


def test_the_plc_triggers_and_nobody_else_decides(daemon: Daemon, strict: Broker) -> None:
    with (
        Listener(strict, username="historian", password="historian") as everything,  # noqa: S106
        wire(strict, "plc1", "decision", "reply/plc1/#", "event") as plc,
    ):
        daemon.armed(everything)
        for user, verbs in MAY.items():
            with wire(strict, user) as client:
                allowed = {
                    verb
                    for verb in FIELDS
                    if client.publish(f"{STATION}/cmd/{verb}", b"[]") != DENIED
                }
                assert allowed == verbs, user
                for topic in PUBLISHED:
                    assert client.publish(f"{STATION}/{topic}", b"{}") == DENIED, (user, topic)
        # What was allowed arrived (and is refused for its payload); nothing else did.
        wait_until(lambda: daemon.log.count(" refused: ") >= len(FIELDS), "every verb's refusal")
        assert daemon.log.count(" refused: ") == len(FIELDS)
        assert plc.named("decision") == []

        trigger = json.dumps({"trigger_id": "t1", "part_id": "good"}).encode()
        reply = f"{STATION}/reply/plc1/x"
        plc.publish(f"{STATION}/cmd/trigger", trigger, response=reply, correlation=b"17")
        answer = plc.wait("reply/plc1/x")
        assert json.loads(answer.payload)["status"] == "accepted"
        assert answer.properties.CorrelationData == b"17"
        assert json.loads(plc.wait("decision").payload)["verdict"] == "pass"
        assert everything.wait("event")
        assert plc.named("event") == [], "the PLC may not read this"


def test_the_daemon_cannot_be_made_to_speak_elsewhere(daemon: Daemon, strict: Broker) -> None:
    with (
        Listener(strict, username="historian", password="historian") as everything,  # noqa: S106
        wire(strict, "plc1") as plc,
    ):
        daemon.armed(everything)
        elsewhere = STATION.replace("station", "other") + "/decision"
        plc.publish(f"{STATION}/cmd/trigger", b"{}", response=elsewhere)
        wait_until(lambda: "broker denies an answer" in daemon.log, "the denial, logged")


def test_sparkplug_births_and_death_are_within_the_rules(strict: Broker, line: Path) -> None:
    (line / "password").write_text("press1\n")
    sections = {
        "mqtt": {"username": "press1", "password_file": "password"},
        "sparkplug": {"group_id": "acme", "edge_node_id": "press1-cam-top"},
    }
    with (
        Wire(strict, "spBv1.0/#", username="historian", password="historian") as host,  # noqa: S106
        Daemon(write_settings(line / "line.toml", strict, **sections)) as daemon,
    ):
        group = "spBv1.0/acme"
        host.wait(f"{group}/NBIRTH/press1-cam-top", timeout_s=20)
        host.wait(f"{group}/DBIRTH/press1-cam-top/station")
        daemon.process.kill()
        host.wait(f"{group}/NDEATH/press1-cam-top")


@pytest.mark.parametrize("topic", ["heartbeat", "event", "config"])
def test_a_daemon_denied_one_topic_says_which(strict: Broker, line: Path, topic: str) -> None:
    acl = line / "strict" / "acl"
    rule = f"topic write {STATION}/{topic}\n"
    text = acl.read_text()
    assert rule in text
    acl.write_text(text.replace(rule, ""))
    strict.kill()
    strict.start()
    (line / "password").write_text("press1\n")
    user = {"username": "press1", "password_file": "password"}
    with (
        Listener(strict, username="historian", password="historian") as everything,  # noqa: S106
        Daemon(write_settings(line / "line.toml", strict, mqtt=user)) as daemon,
        wire(strict, "plc1") as plc,
    ):
        daemon.armed(everything)
        plc.publish(f"{STATION}/cmd/trigger", b'{"trigger_id": "t1", "part_id": "good"}')
        state = everything.wait("state", lambda h: h.data["status"] == "degraded").data
        assert state["problems"] == [f"denied: {topic}"]
        assert f"broker denies {STATION}/{topic}" in daemon.log
        assert everything.verdict("t1")["verdict"] == "pass"
