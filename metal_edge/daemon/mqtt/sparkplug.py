"""The Sparkplug B adapter: a thread and a connection of its own, so that it can hurt nothing else.

It hears copies of what the daemon publishes, keeps the newest few, and passes on what changed.
Whatever goes wrong here is logged; it is no problem of the line, and no part waits for it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from contextlib import ExitStack
from typing import Any

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.mqtt.connection import Connection, Incoming
from metal_edge.daemon.mqtt.publisher import Copy
from metal_edge.daemon.mqtt.reconnect import LONGEST_S, open_connection
from metal_edge.daemon.mqtt.sparkplug_node import NS_PER_MS, SparkplugNode
from metal_edge.daemon.mqtt.sparkplug_wire import MalformedPayloadError, asks_for_rebirth
from metal_edge.settings import LineSettings, MqttSettings

log = logging.getLogger(__name__)

# Decisions waiting for this thread; audit events are what loses nothing.
WAITING = 256
LOOK_S = 0.5
# Between births, which wait rather than data: who asks all the time must not keep a broker busy.
REBIRTH_NS = 1_000_000_000
GOODBYE_S = 0.3


class SparkplugLink:
    """Brings a node's messages to the broker.

    Args:
        settings: the same broker as the line's.
        node: what is said.
        client_id: not that of the line's connection: the broker would drop one for the other.
    """

    def __init__(
        self, settings: MqttSettings, node: SparkplugNode, client_id: str, clock: Clock
    ) -> None:
        self._settings = settings
        self._node = node
        self._client_id = client_id
        self._clock = clock
        self._spread = random.Random()  # noqa: S311  (guards nothing)
        self._bd_seq = 0
        self._last: Connection | None = None
        self._decisions: deque[dict[str, Any]] = deque(maxlen=WAITING)
        self._retained: dict[str, dict[str, Any]] = {}
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._rebirth = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparkplug", daemon=True)

    def start(self) -> None:
        """Begins to connect."""
        self._thread.start()

    def offer(self, name: str, payload: dict[str, Any]) -> None:
        """A copy of a decision or a retained payload; returns at once. See publisher.Copy."""
        if name == "heartbeat":
            return
        if name == "decision":
            self._decisions.append(payload)
        else:
            self._retained[name] = payload
        self._wake.set()

    def close(self) -> None:
        """Says NDEATH, if there is a connection; waits for a moment only."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(2 * GOODBYE_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._serve()
            except Exception:
                # A defect here costs the copies, not the line: told, and tried again later.
                log.exception("the Sparkplug adapter failed")
                self._stopping.wait(LONGEST_S)

    def _serve(self) -> None:
        """One connection, from its births to its end."""
        connection = open_connection(self._make, self._stopping, self._spread)
        if connection is None:
            return
        log.info("Sparkplug: connected, bdSeq %d", self._bd_seq)
        self._rebirth.set()
        born_ns: int | None = None
        while connection.alive and not self._stopping.is_set():
            now_ns = self._clock.mono_ns()
            if not self._rebirth.is_set():
                self._pass_on(connection)
            elif born_ns is None or now_ns - born_ns >= REBIRTH_NS:
                self._give_birth(connection)
                born_ns = now_ns
            self._wake.wait(LOOK_S)
            self._wake.clear()
            while connection.acks:  # of deaths only: nothing else is at QoS 1
                connection.acks.popleft()
        if connection.alive:
            connection.publish(self._node.death(self._bd_seq))
            connection.disconnect(with_will=True)
        else:
            log.warning("Sparkplug: connection lost")
            connection.close()

    def _make(self) -> Connection:
        """A connection with the next bdSeq; it counts CONNECT packets, not attempts."""
        if self._last is not None and self._last.reached:
            self._bd_seq = (self._bd_seq + 1) % 256
        will, topics = self._node.death(self._bd_seq), (self._node.command_topic,)
        self._last = Connection(self._settings, self._client_id, will, topics, self._commanded)
        return self._last

    def _give_birth(self, connection: Connection) -> None:
        self._rebirth.clear()
        self._take()
        for message in self._node.births(self._bd_seq, self._now_ms()):
            connection.publish(message)

    def _take(self) -> list[tuple[int, dict[str, Any]]]:
        """Brings the node up to date; gives what changed, and when in ms since 1970."""
        changes = []
        for name in tuple(self._retained):
            payload = self._retained.pop(name)
            changes.append((self._now_ms(), self._node.observe(name, payload)))
        while self._decisions:
            payload = self._decisions.popleft()
            at_ms = payload["t_publish_ns"] // NS_PER_MS
            changes.append((at_ms, self._node.observe("decision", payload)))
        return [(at_ms, changed) for at_ms, changed in changes if changed]

    def _pass_on(self, connection: Connection) -> None:
        for at_ms, changed in self._take():
            connection.publish(self._node.data(changed, at_ms, self._now_ms()))

    def _commanded(self, connection: Connection, incoming: Incoming) -> None:
        """An NCMD, in the broker's thread."""
        try:
            wanted = not incoming.retained and asks_for_rebirth(incoming.payload)
        except MalformedPayloadError as error:
            log.warning("Sparkplug: NCMD ignored: %s", error)
            return
        if wanted:
            self._rebirth.set()
            self._wake.set()

    def _now_ms(self) -> int:
        return self._clock.utc_ns() // NS_PER_MS


def sparkplug_copies(
    settings: LineSettings, session_id: str, clock: Clock, cleanup: ExitStack
) -> tuple[Copy, ...]:
    """What the publisher's copies go to: nothing without `sparkplug.group_id`.

    `cleanup` ends the adapter.
    """
    group, station = settings.sparkplug.group_id, settings.station
    if group is None:
        return ()
    name = settings.sparkplug.edge_node_id or f"{station.line}-{station.station}"
    node = SparkplugNode(group, name, station.station, session_id)
    client_id = f"{station.topic_root.replace('/', ':')}:sparkplug"
    link = SparkplugLink(settings.mqtt, node, client_id, clock)
    cleanup.callback(link.close)
    link.start()
    return (link.offer,)
