"""Everything that a real daemon says on a real broker is what docs/mqtt/ describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from support.broker import Broker, Listener, wait_until
from support.daemon_process import STATION
from support.schemas import FOLDER, complaints
from support.wire import Wire

from metal_edge.daemon.mqtt.command_fields import FIELDS

if TYPE_CHECKING:
    from conftest import StartDaemon

GOOD = {
    "trigger": {"trigger_id": "t9", "part_id": "good", "encoder": 4711},
    "recipe": {"recipe": "other"},
    "disarm": {"reason": "cleaning"},
}


# In this order: what is armed last serves the snapshot; a change of recipe must be over.
VERBS = ("trigger", "recipe", "golden-check", "disarm", "arm", "snapshot")


# The conventions that PLCs and historians are built on, written down here once more: a change in
# the code, however well documented, is a change for everybody. QoS, retained, expiry in seconds.
AGREED: dict[str, tuple[int, bool, int | None]] = {
    "decision": (0, False, 1),
    "event": (1, False, 7 * 24 * 3600),
    "heartbeat": (1, False, 1),
    "state": (1, True, None),
    "model": (1, True, None),
    "config": (1, True, None),
    "reply/me": (1, False, 10),
}
BUSY_S = 30  # a broker takes from the expiry what a message has waited


def address_of(name: str) -> str:
    document = json.loads((FOLDER / "asyncapi.json").read_text(encoding="utf-8"))
    address = document["channels"][name]["address"]
    for level, value in zip(
        ("enterprise", "site", "area", "line", "station"),
        STATION.split("/")[2:],
        strict=True,
    ):
        address = address.replace(f"{{{level}}}", value)
    return str(address)


def binding_of(name: str) -> dict[str, object]:
    document = json.loads((FOLDER / "asyncapi.json").read_text(encoding="utf-8"))
    binding = document["operations"][name]["bindings"]["mqtt"]
    assert isinstance(binding, dict)
    return binding


def test_every_topic_says_what_its_schema_describes(
    start: StartDaemon, listener: Listener, broker: Broker, line: Path
) -> None:
    with Wire(broker, "#") as wire:
        daemon = start(
            mqtt={"echo_timeout_s": 30.0},
            gate={"offset_ms": 400.0, "encoder_counts": 5000},
            heartbeat_hz=20,
            evidence={"keep": "all", "path": "pictures"},
            recipes={"other": {"bundle": "bundle"}},
        )
        daemon.armed(listener)
        beat = json.loads(wire.wait("heartbeat").payload)
        echo = {key: beat[key] for key in ("schema", "session_id", "seq")}
        assert complaints("echo", echo) == []
        assert complaints("echo", {**echo, "decision_seq": 0}) == []
        assert complaints("echo", {**echo, "decision_seq": "0"}) != []
        wire.publish(address_of("echo"), json.dumps(echo).encode(), qos=0)
        for number, part in enumerate(("good", "bad", "missing", "good")):
            listener.trigger(STATION, f"t{number}", part)
            listener.verdict(f"t{number}")
        assert sorted(VERBS) == sorted(FIELDS)
        for verb in VERBS:
            reply = f"{STATION}/reply/me/{verb}"
            for fields in ({"strange": 1}, GOOD.get(verb, {})):
                payload = json.dumps(fields).encode()
                wire.publish(address_of(f"cmd-{verb}"), payload, response=reply, correlation=b"c")
            if verb == "snapshot":
                listener.trigger(STATION, "t10", "good")
            wire.wait(reply, 2)
        wait_until(
            lambda: any(json.loads(m.payload)["echo_age_ms"] for m in wire.named("heartbeat")),
            "a heartbeat that tells of the echo",
        )
        assert daemon.stop() == 0
        wait_until(lambda: b"offline" in wire.named("state")[-1].payload, "the last state")

        for name in ("decision", "event", "heartbeat", "state", "model", "config"):
            heard = wire.named(address_of(name))
            assert heard, name
            binding = binding_of(name)
            for message in heard:
                assert complaints(name, json.loads(message.payload)) == []
                assert message.properties.ContentType == "application/json"
                assert message.qos == binding["qos"]
                expiry = getattr(message.properties, "MessageExpiryInterval", None)
                assert expiry is None or expiry <= binding["messageExpiryInterval"]
                assert (expiry is None) == ("messageExpiryInterval" not in binding)
        for verb in FIELDS:
            replies = wire.named(f"{STATION}/reply/me/{verb}")
            assert len(replies) == 2, verb
            assert {json.loads(m.payload)["status"] for m in replies[1:]} <= {"done", "accepted"}
            for message in replies:
                assert complaints(f"reply-{verb}", json.loads(message.payload)) == []
                assert message.properties.CorrelationData == b"c"
        with Wire(broker, "#") as late:
            retained = {m.topic for m in (late.wait(n) for n in ("state", "model", "config"))}
            assert retained == {address_of(n) for n in ("state", "model", "config")}
            assert all(m.retain for m in late.messages)
            assert all(binding_of(n)["retain"] for n in ("state", "model", "config"))


def test_every_topic_travels_as_agreed_and_so_does_the_last_will(
    start: StartDaemon, listener: Listener, broker: Broker
) -> None:
    with Wire(broker, f"{STATION}/#") as wire:
        daemon = start()
        session = daemon.armed(listener)["session_id"]
        trigger = json.dumps({"trigger_id": "t1", "part_id": "good"}).encode()
        wire.publish(f"{STATION}/cmd/trigger", trigger, response=f"{STATION}/reply/me")
        wire.wait("event")
        wire.wait("reply/me")
        daemon.process.kill()
        wait_until(lambda: b'"offline"' in wire.named("state")[-1].payload, "the last will")
        for name, (qos, retained, expiry) in AGREED.items():
            heard = wire.named(f"{STATION}/{name}")
            assert heard, name
            for message in heard:
                assert (message.qos, message.retain) == (qos, retained), name
                left = getattr(message.properties, "MessageExpiryInterval", None)
                assert (left is None) == (expiry is None), name
                assert left is None or expiry is None or expiry - BUSY_S <= left <= expiry, name
        will = json.loads(wire.named("state")[-1].payload)
        assert (will["session_id"], will["problems"]) == (session, ["connection lost"])
