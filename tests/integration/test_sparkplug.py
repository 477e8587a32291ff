"""A real daemon as a Sparkplug B edge node on a real broker, before a host with its own decoder."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from support.broker import Broker, Listener, wait_until
from support.daemon_process import STATION
from support.sparkplug_proto import Payload, decode, values
from support.wire import Wire

if TYPE_CHECKING:
    from conftest import StartDaemon

NODE = "line-station"
SPARKPLUG = {"sparkplug": {"group_id": "acme"}}


class Host(Wire):
    """Hears everything of the group, and knows its kinds."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker, "spBv1.0/acme/#")

    def kinds(self) -> list[str]:
        return [message.topic.split("/")[2] for message in list(self.messages)]

    def all(self, kind: str) -> list[Any]:
        """The decoded payloads of one kind."""
        return [
            decode(message.payload)
            for message in list(self.messages)
            if message.topic.split("/")[2] == kind
        ]

    def until(self, kind: str, count: int = 1, timeout_s: float = 10.0) -> Any:
        """The `count`-th payload of a kind."""
        wait_until(lambda: self.kinds().count(kind) >= count, f"{count} {kind}", timeout_s)
        return self.all(kind)[count - 1]

    def device(self) -> dict[str, Any]:
        """What the device's metrics stand at, as a host keeps them."""
        known: dict[str, Any] = {}
        for message in list(self.messages):
            if message.topic.split("/")[2] in ("DBIRTH", "DDATA"):
                known |= values(decode(message.payload))
        return known

    def rebirth(self, topic: str = f"spBv1.0/acme/NCMD/{NODE}") -> None:
        command = Payload()
        command.metrics.add(name="Node Control/Rebirth", datatype=11, boolean_value=True)
        self.publish(topic, command.SerializeToString(), qos=0)

    def check_numbers(self) -> None:
        """Every message of the node has the next seq; a birth begins at 0, a death has none."""
        last = None
        for message in list(self.messages):
            kind = message.topic.split("/")[2]
            if kind == "NCMD":
                continue
            payload = decode(message.payload)
            if kind == "NDEATH":
                assert not payload.HasField("seq")
                continue
            expected = 0 if kind == "NBIRTH" else (last + 1) % 256
            assert payload.seq == expected, self.kinds()
            last = payload.seq


def test_birth_data_rebirth_and_death(
    start: StartDaemon, listener: Listener, broker: Broker
) -> None:
    with Host(broker) as host:
        daemon = start(**SPARKPLUG)
        state = daemon.armed(listener)
        birth = values(host.until("NBIRTH"))
        assert (birth["bdSeq"], birth["Node Control/Rebirth"]) == (0, False)
        assert birth["Properties/Session"] == state["session_id"]
        host.until("DBIRTH")
        assert host.messages[1].topic == f"spBv1.0/acme/DBIRTH/{NODE}/station"

        model = listener.wait("model").data
        for trigger, part in (("t1", "good"), ("t2", "bad")):
            listener.trigger(STATION, trigger, part)
            verdict = listener.verdict(trigger)
            wait_until(lambda t=trigger: host.device()["Part/Trigger"] == t, "the verdict")
            device = host.device()
            assert device["Part/Verdict"] == verdict["verdict"]
            assert device["Part/Score"] == verdict["score"]
            assert device["Part/Threshold"] == verdict["threshold"]
            assert device["Part/Exposure"] == verdict["t_exposure_ns"] // 1_000_000
            assert device["Model/Digest"] == model["sha256"]
            assert device["Model/Threshold"] == model["thresholds"]["score"]
            assert device["Line/Status"] == "online"

        host.publish(f"spBv1.0/acme/NCMD/{NODE}", b"\xff\x00", qos=0)
        wait_until(lambda: "NCMD ignored" in daemon.log, "the malformed command, logged")
        host.rebirth()
        again = values(host.until("NBIRTH", 2))
        assert again["bdSeq"] == 0, "the connection is the same"
        host.until("DBIRTH", 2)
        assert values(host.all("DBIRTH")[1])["Part/Trigger"] == "t2"

        assert daemon.stop() == 0
        death = values(host.until("NDEATH"))
        assert death == {"bdSeq": 0}
        assert host.device()["Line/Status"] == "offline"
        host.check_numbers()
        for message in host.messages:
            kind = message.topic.split("/")[2]
            assert (message.qos, message.retain) == (int(kind == "NDEATH"), False)


def test_a_killed_daemon_leaves_its_death_and_a_rebirth_storm_is_bounded(
    start: StartDaemon, listener: Listener, broker: Broker
) -> None:
    with Host(broker) as host:
        daemon = start(**SPARKPLUG)
        daemon.armed(listener)
        host.until("DBIRTH")
        for _ in range(200):
            host.rebirth()
        host.until("NBIRTH", 2)
        listener.trigger(STATION, "t1", "good")
        assert listener.verdict("t1")["verdict"] == "pass"
        wait_until(lambda: host.device()["Part/Trigger"] == "t1", "data after the storm")
        assert host.kinds().count("NBIRTH") <= 5
        daemon.process.send_signal(signal.SIGKILL)
        assert values(host.until("NDEATH")) == {"bdSeq": 0}
        host.check_numbers()


def test_the_next_connection_has_the_next_bdseq_and_todays_values(
    start: StartDaemon, broker: Broker
) -> None:
    """While the broker is away, decisions go on; the birth tells how things stand then."""
    daemon = start(camera={"mode": "latest", "fps": 10, "loop": True}, **SPARKPLUG)
    with Host(broker) as host:
        assert values(host.until("NBIRTH", timeout_s=20))["bdSeq"] == 0
        broker.kill()
        wait_until(lambda: daemon.log.count("sent=False") > 10, "decisions while offline")
        before = len(host.messages)
        with daemon.frozen():  # births are not retained: the host must be back first
            broker.start()
            host.wait_subscribed()
        births = wait_until(lambda: host.all("NBIRTH")[1:], "another birth")
        assert values(births[0])["bdSeq"] == 1, "attempts without a CONNECT do not count"
        host.until("DBIRTH", 2)
        later = [m for m in host.messages[before:] if m.topic.split("/")[2] == "DBIRTH"]
        assert values(decode(later[0].payload))["Part/Sequence"] > 10
        host.until("DDATA")


def test_without_a_group_nothing_is_said(
    start: StartDaemon, listener: Listener, broker: Broker
) -> None:
    with Host(broker) as host:
        start().armed(listener)
        listener.trigger(STATION, "t1", "good")
        assert listener.verdict("t1")["verdict"] == "pass"
        assert host.kinds() == []
