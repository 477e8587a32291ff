"""Commands and echoes on the wire: what nobody should send, and a PLC that falls silent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from support.broker import Broker, Listener, wait_until
from support.daemon_process import STATION
from support.wire import Wire

if TYPE_CHECKING:
    from conftest import StartDaemon

TRIGGER = b'{"trigger_id": "t1", "part_id": "good"}'


def test_what_nobody_should_send_is_answered_and_the_line_goes_on(
    start: StartDaemon, listener: Listener, broker: Broker
) -> None:
    daemon = start()
    daemon.armed(listener)
    with Wire(broker, "answers") as wire:

        def answer(verb: str, payload: bytes, *, retain: bool = False) -> dict[str, Any]:
            before = len(wire.named("answers"))
            topic = f"{STATION}/cmd/{verb}"
            wire.publish(topic, payload, retain=retain, response="answers", correlation=b"c")
            said = wire.wait("answers", before + 1)
            assert said.properties.CorrelationData == b"c"
            data = json.loads(said.payload)
            assert (data["schema"], data["verb"]) == (1, verb)
            assert data["status"] == "refused"
            assert isinstance(data, dict)
            assert f"command '{verb}' refused: {data['reason']}" in daemon.log
            return data

        assert "unknown command" in answer("format", b"{}")["reason"]
        assert "retained" in answer("trigger", TRIGGER, retain=True)["reason"]
        assert "bytes" in answer("trigger", b" " * 60_000)["reason"]
        assert "JSON" in answer("recipe", b"\xff\x00")["reason"]
        assert "recipe" in answer("recipe", b'{"recipe": "../../etc"}')["reason"]
        assert "no recipe 'bottle'" in answer("recipe", b'{"recipe": "bottle"}')["reason"]
        assert "evidence.path" in answer("snapshot", b"")["reason"]
        for part in ("", "a b", "a/b", "a+", "#", "\u00e4", "a\n", "a\0", "x" * 65):
            fields = {"trigger_id": "odd", "part_id": part}
            assert "part_id" in answer("trigger", json.dumps(fields).encode())["reason"]
        # Larger than what we told the broker to deliver: it keeps it.
        wire.publish(f"{STATION}/cmd/trigger", b" " * 100_000, response="answers")
        # Nowhere to answer, and a correlation that is none of our business.
        wire.publish(f"{STATION}/cmd/trigger", b"{}")
        wire.publish(f"{STATION}/cmd/trigger", b"{}", response="answers", correlation=b"c" * 300)
        wire.publish(f"{STATION}/cmd/trigger", TRIGGER, response="answers", correlation=b"last")
        assert listener.verdict("t1")["verdict"] == "pass"
        wait_until(
            lambda: wire.named("answers")[-1].properties.CorrelationData == b"last", "an answer"
        )
        assert len(wire.named("answers")) == 17
        assert answer("trigger", TRIGGER)["reason"] == "duplicate_trigger"


def test_without_an_echo_the_line_is_degraded_until_the_plc_is_back(
    start: StartDaemon, listener: Listener, broker: Broker
) -> None:
    state = start(mqtt={"echo_timeout_s": 1.0}, heartbeat_hz=10).armed(listener)
    silent = listener.wait("state", lambda h: h.data["status"] == "degraded")
    assert silent.data["problems"] == ["echo"]
    # It was healthy for as long as the first heartbeat could still be echoed.
    first, *others = [h.data for h in listener.all("heartbeat") if h.at < silent.at]
    assert silent.data["t_publish_ns"] - first["t_publish_ns"] >= 1_000_000_000
    assert all(beat["healthy"] for beat in (first, *others[:-1]))

    with Wire(broker, f"{STATION}/heartbeat") as plc:

        def echoed(session_id: str) -> None:
            """Echoes heartbeats until the next five have come."""
            first = len(plc.named("heartbeat"))
            for number in range(first + 1, first + 6):
                beat = json.loads(plc.wait("heartbeat", number).payload)
                echo = {"schema": 1, "session_id": session_id, "seq": beat["seq"]}
                plc.publish(f"{STATION}/echo", json.dumps(echo).encode(), qos=0)

        listener.wipe()
        echoed("another session")
        assert [h.data["problems"] for h in listener.all("state")] == []
        echoed(state["session_id"])
        listener.wait("state", lambda h: h.data["status"] == "online")
    listener.wait("state", lambda h: h.data["problems"] == ["echo"])
    # Deaf or not, the PLC gets its verdicts: it may be the echo alone that does not arrive.
    listener.trigger(STATION, "t1", "good")
    assert listener.verdict("t1")["verdict"] == "pass"
