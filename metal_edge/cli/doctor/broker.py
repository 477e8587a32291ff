"""The broker as this station meets it: credentials, subscriptions, what it may publish."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from metal_edge.cli.doctor.finding import Finding, Level, failure
from metal_edge.daemon.mqtt.connection import Connection, Incoming, Message
from metal_edge.daemon.mqtt.topics import (
    COMMAND,
    CONFIG,
    DECISION,
    ECHO,
    EVENT,
    HEARTBEAT,
    MODEL,
    STATE,
)
from metal_edge.errors import UnavailableError
from metal_edge.settings import LineSettings

OWN = (DECISION, EVENT, HEARTBEAT, STATE, MODEL, CONFIG)
# Three heartbeats of the slowest kind are one second each.
LISTEN_S = 1.2
ACK_S = 3.0


def check_broker(settings: LineSettings, running: str | None) -> tuple[list[Finding], str | None]:
    """Findings, and who serves this station as far as the broker shows.

    With another client id than a daemon's and without a will, so that nobody takes it for one.
    While a daemon speaks, nothing is published.
    """
    root = settings.station.topic_root
    beats: list[str] = []

    def heard(connection: Connection, incoming: Incoming) -> None:
        if incoming.topic == f"{root}/{HEARTBEAT.name}" and incoming.payload:
            beats.append(incoming.topic)

    topics = [f"{root}/{COMMAND.name}/+"]
    if settings.mqtt.echo_timeout_s is not None:
        topics.append(f"{root}/{ECHO.name}")
    where = f"{settings.mqtt.host}:{settings.mqtt.port}"
    client_id = f"doctor:{os.getpid()}"
    try:
        connection = Connection(settings.mqtt, client_id, None, tuple(topics), heard)
        connection.open()
    except UnavailableError as error:
        return [failure("broker", error)], running
    try:
        found = [Finding(Level.OK, "broker", f"{where}: connected, hears {', '.join(topics)}")]
        running = running or _listen(settings, f"{root}/{HEARTBEAT.name}", client_id, beats, heard)
        if running is None:
            found.append(_may_publish(connection, root))
        else:
            found.append(Finding(Level.NOTE, "publishing", f"not tried: {running} speaks here"))
        return found, running
    finally:
        connection.disconnect()


def _listen(
    settings: LineSettings,
    topic: str,
    client_id: str,
    beats: list[str],
    heard: Callable[[Connection, Incoming], None],
) -> str | None:
    """A daemon's heartbeat, from wherever it runs; None when none is heard, or may be."""
    ear = Connection(settings.mqtt, f"{client_id}:ear", None, (topic,), heard)
    try:
        ear.open()
    except UnavailableError:  # access rules may keep a station from hearing itself
        return None
    try:
        _until(lambda: bool(beats), LISTEN_S)
    finally:
        ear.disconnect()
    return "a daemon whose heartbeat is heard" if beats else None


def _may_publish(connection: Connection, root: str) -> Finding:
    """Empty messages, not retained: no reader takes one for a verdict or for a sign of life."""
    asked = {}
    for topic in OWN:
        mid = connection.publish(Message(f"{root}/{topic.name}", b"", 1, expiry_s=1))
        if mid is not None:
            asked[mid] = topic.name
    _until(lambda: len(connection.acks) >= len(OWN), ACK_S)
    acks = {asked.pop(ack.mid): ack.refusal for ack in list(connection.acks) if ack.mid in asked}
    denied = [f"{name} ({why})" for name, why in acks.items() if why is not None]
    if denied:
        return Finding(
            Level.FAIL,
            "publishing",
            f"the broker denies {', '.join(denied)} below {root}",
            "give this user the access rules of docs/mqtt.md",
        )
    if len(acks) < len(OWN):
        missing = sorted({topic.name for topic in OWN} - acks.keys())
        return Finding(
            Level.FAIL,
            "publishing",
            f"no answer to {', '.join(missing)} within {ACK_S:g} s",
            "look at the broker's log",
        )
    return Finding(Level.OK, "publishing", f"all {len(OWN)} topics below {root}")


def _until(condition: Callable[[], bool], patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
