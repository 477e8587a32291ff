"""The publisher on a real broker, with handlers that fail or take their time."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from support.broker import Broker, wait_until
from support.daemon_process import STATION
from support.wire import Wire

from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.mqtt.commands import Answer, Command, Commands
from metal_edge.daemon.mqtt.connection import Connection
from metal_edge.daemon.mqtt.publisher import Publisher
from metal_edge.settings import MqttSettings

Register = Callable[[Commands], None]


@contextmanager
def publishing(
    broker: Broker, register: Register, **settings: Any
) -> Iterator[tuple[Publisher, Commands]]:
    clock = SystemClock()
    commands = Commands(clock)
    register(commands)
    publisher = Publisher(
        MqttSettings(host=broker.host, port=broker.port, **settings),
        STATION,
        will={"session_id": "s"},
        on_command=commands.handle,
        clock=clock,
    )
    publisher.open()
    try:
        yield publisher, commands
    finally:
        publisher.close({"status": "offline"}, 1.0)


def beats(publisher: Publisher) -> Callable[[], bool]:
    """Does a loop's work; true when the broker acknowledges."""
    seq = iter(range(1, 10**6))

    def turn() -> bool:
        publisher.pump()
        publisher.heartbeat({"seq": next(seq)})
        return publisher.health().responsive and not publisher.health().problems

    return turn


def test_a_handler_that_fails_is_a_problem_until_its_topic_works_again(broker: Broker) -> None:
    broken = [True]

    def arm(command: Command) -> Answer:
        if broken[0]:
            raise RuntimeError("defect")
        return Answer("done")

    def register(commands: Commands) -> None:
        commands.register("arm", arm)
        commands.register("snapshot", lambda command: Answer("done"))

    with publishing(broker, register) as (publisher, _), Wire(broker, "a") as wire:

        def ask(verb: str) -> bytes:
            before = len(wire.named("a"))
            wire.publish(f"{STATION}/cmd/{verb}", b"", response="a")
            return bytes(wire.wait("a", before + 1).payload)

        turn = beats(publisher)
        wait_until(turn, "a responsive broker")
        assert b'"failed"' in ask("arm")
        wait_until(lambda: "callback" in publisher.health().problems, "the problem told")
        assert b'"done"' in ask("snapshot"), "the thread lives"
        assert "callback" in publisher.health().problems, "another topic proves nothing"
        broken[0] = False
        assert b'"done"' in ask("arm")
        wait_until(lambda: turn() and publisher.health().problems == (), "no problem left")


def test_a_slow_answer_outlives_the_connection_that_its_command_came_on(broker: Broker) -> None:
    taken: list[Command] = []

    def register(commands: Commands) -> None:
        commands.register("recipe", taken.append)

    with publishing(broker, register) as (publisher, _), Wire(broker, "a") as wire:
        turn = beats(publisher)
        wait_until(turn, "a responsive broker")
        wire.publish(f"{STATION}/cmd/recipe", b'{"recipe": "r"}', response="a", correlation=b"mine")
        wait_until(lambda: taken, "the command")
        broker.kill()
        wait_until(lambda: not turn(), "the loss noticed")
        broker.start()
        wait_until(turn, "another connection")
        wire.wait_subscribed()
        taken[0].reply(Answer("done", recipe="r"))
        answer = wire.wait("a")
        assert answer.properties.CorrelationData == b"mine"
        assert b'"done"' in answer.payload


def test_decisions_that_the_plc_hears_none_of_are_a_problem(broker: Broker) -> None:
    with publishing(broker, lambda commands: None, echo_timeout_s=1.0) as (publisher, _):
        turn, numbers = beats(publisher), count(1)
        with Wire(broker, f"{STATION}/heartbeat") as plc:
            wait_until(turn, "a responsive broker")

            def problems(hears: bool) -> tuple[str, ...]:
                """A decision, a heartbeat, and the PLC's answer to the newest one that it has."""
                seq = next(numbers)
                assert publisher.decision({"seq": seq}, b"{}"), "decisions go on"
                turn()
                if plc.named("heartbeat"):
                    beat = json.loads(plc.named("heartbeat")[-1].payload)["seq"]
                    echo = {"schema": 1, "session_id": "s", "seq": beat}
                    echo["decision_seq"] = seq if hears else 0
                    plc.publish(f"{STATION}/echo", json.dumps(echo).encode(), qos=0)
                return publisher.health().problems

            wait_until(lambda: problems(False) == ("unheard: decision",), "the problem told")
            wait_until(lambda: problems(True) == (), "no problem left")


def test_copies_hear_what_was_published(broker: Broker) -> None:
    heard: list[str] = []
    publisher = Publisher(
        MqttSettings(host=broker.host, port=broker.port),
        STATION,
        will={"session_id": "s"},
        on_command=lambda *unused: None,
        clock=SystemClock(),
        copies=(lambda name, payload: heard.append(f"{name} {payload['x']}"),),
    )
    with Wire(broker, f"{STATION}/#") as wire:
        publisher.open()
        publisher.retain("model", {"x": 1})
        assert publisher.decision({"x": 2}, b'{"x":2}')
        wire.wait("decision")
        publisher.close({"x": 3}, 1.0)
        assert heard == ["model 1", "decision 2", "state 3"]
        assert not publisher.decision({"x": 4}, b'{"x":4}'), "nothing is sent after the end"
        assert heard[-1] == "decision 4", "but hosts may know how the part was judged"


DIES_AT_ONCE = """
import os, signal, sys
from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.mqtt.publisher import Publisher
from metal_edge.settings import MqttSettings

host, port, root = sys.argv[1:]
publisher = Publisher(
    MqttSettings(host=host, port=int(port)),
    root,
    will={"session_id": "s"},
    on_command=lambda *unused: None,
    clock=SystemClock(),
)
publisher.open()
assert publisher.decision({"x": 1}, b'{"x":1}')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_decision_is_in_the_socket_when_the_call_returns(broker: Broker) -> None:
    """What comes after it must not keep paho's thread from writing: here, kill -9 comes."""
    with Wire(broker, f"{STATION}/#") as wire:
        command = [sys.executable, "-c", DIES_AT_ONCE, broker.host, str(broker.port), STATION]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        wire.wait("decision")


def test_a_closed_connection_leaves_no_descriptor_for_the_garbage_collector(
    broker: Broker,
) -> None:
    settings = MqttSettings(host=broker.host, port=broker.port)

    def connect_and_close() -> None:
        connection = Connection(settings, "client", None, (), lambda *unused: None)
        connection.open()
        connection.disconnect()

    connect_and_close()
    gc.collect()
    gc.disable()
    try:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            connect_and_close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    finally:
        gc.enable()
