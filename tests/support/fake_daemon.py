"""A scripted daemon, the PLC's peer: speaks the protocol, rightly or wrongly, part by part.

`python fake_daemon.py PORT ROOT SCRIPT`; SCRIPT is a JSON file, number of the trigger or part id
-> behaviour.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE_S = 30.0
LATE_S = 0.9  # after any gate of the tests, within the late window


def connect(port: int, will: tuple[str, str] | None = None) -> mqtt.Client:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    if will is not None:
        client.will_set(*will, qos=1, retain=True)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.connect("127.0.0.1", port, keepalive=5)
    client.loop_start()
    assert connected.wait(PATIENCE_S)
    return client


class FakeDaemon:
    """Answers each trigger as the script says; beats until told to be unhealthy."""

    def __init__(self, port: int, root: str, script: dict[str, str]) -> None:
        self.root, self.script = root, script
        self.session = uuid.uuid4().hex
        self.healthy = True
        self.seq = 0
        self.client = connect(port, (f"{root}/state", self.state("offline")))

    def run(self) -> None:
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = self.on_trigger
        self.client.subscribe(f"{self.root}/cmd/trigger", qos=1)
        assert subscribed.wait(PATIENCE_S)
        self.client.publish(f"{self.root}/state", self.state("online"), qos=1, retain=True)
        beat = 0
        while os.getppid() != 1:  # ends with the test run, whatever becomes of it
            beat += 1
            fields = {"session_id": self.session, "seq": beat, "healthy": self.healthy}
            self.client.publish(f"{self.root}/heartbeat", json.dumps(fields), qos=1)
            time.sleep(0.1)

    def state(self, status: str) -> str:
        return json.dumps({"session_id": self.session, "status": status})

    def on_trigger(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        command = json.loads(message.payload)
        properties = message.properties
        assert properties is not None
        heard = {
            "command": command,
            "qos": message.qos,
            "retain": message.retain,
            "expiry": properties.MessageExpiryInterval,
            "correlation": properties.CorrelationData.decode(),
            "response_topic": properties.ResponseTopic,
        }
        print(json.dumps(heard), flush=True)
        reply = Properties(PacketTypes.PUBLISH)
        reply.CorrelationData = properties.CorrelationData
        index = command["trigger_id"].rsplit("-")[-1].lstrip("0") or "0"
        behaviour = self.script.get(command["part_id"], self.script.get(index, "pass"))
        status = json.dumps({"status": "refused" if behaviour == "silent" else "accepted"})
        self.client.publish(properties.ResponseTopic, status, qos=1, properties=reply)
        self.answer(behaviour, command)

    def answer(self, behaviour: str, command: dict[str, Any]) -> None:
        self.seq += 1
        fields = {
            "schema": 1,
            "event_id": uuid.uuid4().hex,
            "session_id": self.session,
            "seq": self.seq,
            "part_id": command["part_id"],
            "trigger_id": command["trigger_id"],
            "frame_id": f"frame-{self.seq - 1}",
            "verdict": "pass",
            "reason": "below_threshold",
            "score": 0.2,
            "threshold": 0.5,
            "t_exposure_ns": time.time_ns(),
            "t_publish_ns": time.time_ns(),
        }
        reject = fields | {"verdict": "reject", "score": 0.9}
        doubtful = fields | {"verdict": "unknown", "score": None}
        early = fields | {"t_exposure_ns": fields["t_publish_ns"] - 3_000_000_000}
        answers: dict[str, list[Any]] = {
            "pass": [fields],
            "reject": [reject],
            "unknown": [doubtful],
            "silent": [],
            "wrong part": [fields | {"part_id": "P-other"}],
            "wrong trigger": [fields | {"trigger_id": "other"}],
            "wrong session": [fields | {"session_id": "other"}],
            "twice": [fields, fields],
            "contradictory": [reject, fields],
            "not json": [b"pass", fields],
            "nan": [fields | {"score": math.nan}],
            "no score": [fields | {"score": None}],
            "above threshold": [fields | {"score": 0.5}],
            "giant": [fields | {"padding": "x" * 500_000}],
            "picture before the part": [early],
            "picture without a time": [fields | {"t_exposure_ns": None}],
            "unhealthy": [fields],
        }
        if behaviour == "late":
            threading.Timer(LATE_S, self.send, [fields]).start()
        elif behaviour == "retained":
            self.send(fields, retain=True)
        else:
            self.healthy = self.healthy and behaviour != "unhealthy"
            for one in answers[behaviour]:
                self.send(one)

    def send(self, what: Any, retain: bool = False) -> None:
        payload = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.client.publish(f"{self.root}/decision", payload, qos=0, retain=retain)


if __name__ == "__main__":
    FakeDaemon(int(sys.argv[1]), sys.argv[2], json.loads(Path(sys.argv[3]).read_text())).run()
