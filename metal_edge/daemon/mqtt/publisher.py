"""What is published when: a real-time decision at once or never, an audit event for sure.

One thread, the deciding loop, calls `pump`, `heartbeat` and `retain`; decisions, events and
answers may also come from the broker's thread. Only the connecting itself, which blocks, has a
thread of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.mqtt.connection import Connection, Incoming, Message
from metal_edge.daemon.mqtt.echo import EchoWatch
from metal_edge.daemon.mqtt.messages import encode
from metal_edge.daemon.mqtt.reconnect import Connector
from metal_edge.daemon.mqtt.topics import (
    COMMAND,
    DECISION,
    ECHO,
    EVENT,
    HEARTBEAT,
    MAX_CORRELATION,
    REPLY,
    RETAINED,
    STATE,
    Topic,
    may_answer,
)
from metal_edge.daemon.records.events import EventSender
from metal_edge.daemon.records.outbox import MemoryOutbox, Outbox
from metal_edge.settings import MqttSettings

log = logging.getLogger(__name__)

# A message unacknowledged for this long: the broker hangs, so a decision would arrive stale.
UNRESPONSIVE_NS = 1_000_000_000

Send = Callable[[dict[str, Any]], None]
# verb, payload, retained, and where the answer goes, now or later
OnCommand = Callable[[str, bytes, bool, Send], None]
# Gets a copy of what is published: the topic's name and the payload. Must return at once.
Copy = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class BrokerHealth:
    """How the broker is doing, judged by its acknowledgements."""

    responsive: bool
    puback_age_ms: float | None
    events_waiting: int
    events_dropped: int
    decisions_dropped: int
    problems: tuple[str, ...]
    echo_age_ms: float | None = None


@dataclass(slots=True)
class _Sent:
    """A QoS 1 message that the broker has not acknowledged yet."""

    what: str
    sent_ns: int


class Publisher:
    """The station's voice.

    Args:
        settings: the broker.
        topic_root: of this station.
        will: payload of `state` when the connection breaks.
        on_command: takes each command, in the broker's thread; see Commands.handle.
        clock: ages of acknowledgements are measured on its monotonic side.
        outbox: where audit events wait; by default in memory, `settings.event_queue` of them.
        copies: hear of decisions and retained payloads after they were published, and of each
            heartbeat, whether it could be sent or not.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topic_root: str,
        *,
        will: dict[str, Any],
        on_command: OnCommand,
        clock: Clock,
        outbox: Outbox | None = None,
        copies: Sequence[Copy] = (),
    ) -> None:
        self._settings = settings
        self._root = topic_root
        self._will = Message(f"{topic_root}/{STATE.name}", encode(will), STATE.qos, STATE.retain)
        self._on_command = on_command
        self._clock = clock
        self._copies = tuple(copies)
        self._topics: tuple[str, ...] = (f"{topic_root}/{COMMAND.name}/+",)
        self._echo: EchoWatch | None = None
        if settings.echo_timeout_s is not None:
            self._echo = EchoWatch(str(will["session_id"]), settings.echo_timeout_s)
            self._topics += (f"{topic_root}/{ECHO.name}",)
        self._connection: Connection | None = None
        self._connector = Connector(self._new_connection)
        self._retained: dict[str, bytes] = {}
        self._outbox: Outbox = outbox or MemoryOutbox(settings.event_queue)
        self._events = EventSender(self._outbox, clock)
        self._unacked: dict[int, _Sent] = {}
        self._last_ack_ns: int | None = None
        self._decisions_dropped = 0
        self._denied: set[str] = set()
        self._uncopied: set[str] = set()

    def open(self) -> None:
        """Makes the first connection.

        Raises:
            UnavailableError: no broker, or it refused.
        """
        connection = self._new_connection()
        connection.open()
        self._connection = connection

    def retain(self, name: str, payload: dict[str, Any]) -> None:
        """Sets `state`, `model` or `config`: sent now, and again after every reconnection."""
        self._retained[name] = encode(payload)
        self._send(RETAINED[name], self._retained[name])
        self._copy(name, payload)

    def decision(self, payload: dict[str, Any], encoded: bytes) -> bool:
        """Sends a decision now or never: one that waited would reject the wrong part.

        Args:
            payload: for those who get copies.
            encoded: the same, as it goes over the wire.

        Returns:
            False when the broker is away or does not answer; the decision is counted, not kept.
        """
        message = self._message(DECISION, encoded)
        if self._echo is not None:
            self._echo.deciding(payload["seq"])
        connection = self._connection
        sent = (
            connection is not None
            and self._responsive()
            and connection.publish(message) is not None
        )
        if not sent:
            self._decisions_dropped += 1
        elif self._echo is not None:
            self._echo.decided(payload["seq"])
        self._copy(DECISION.name, payload)
        return sent

    def begin_event(self, event_id: str, encoded: bytes) -> None:
        """Notes the audit copy before its decision goes out; `event` must follow."""
        self._outbox.begin(event_id, encoded)

    def event(self, event_id: str, encoded: bytes) -> None:
        """Puts the audit copy into the outbox; `pump` sends it."""
        self._outbox.put(event_id, encoded)

    def heartbeat(self, payload: dict[str, Any]) -> None:
        """Sends a sign of life, unless earlier ones still hang: old ones must not pile up."""
        self._copy(HEARTBEAT.name, payload)
        if not self._responsive():
            return
        mid = self._send(HEARTBEAT, encode(payload))
        if self._echo is not None and mid is not None:
            self._echo.sent(payload["seq"], self._clock.mono_ns())

    def pump(self) -> None:
        """Moves things on: acknowledgements, waiting events, a lost connection."""
        self._collect_acks()
        connection = self._connector.take()
        if connection is not None:
            self._adopt(connection)
        if self._connection is None or self._is_dead(self._connection):
            self._start_connecting()
            return
        self._events.pump(lambda event: self._send(EVENT, event))

    def health(self) -> BrokerHealth:
        """See BrokerHealth."""
        now_ns = self._clock.mono_ns()
        last = self._last_ack_ns
        problems = [f"denied: {name}" for name in sorted(self._denied)]
        responsive = self._responsive()
        if not responsive:
            problems.append("broker")
        if self._connection is not None and self._connection.callback_failed:
            problems.append("callback")
        if self._echo is not None and self._echo.silent(now_ns):
            problems.append("echo")
        if self._echo is not None and self._echo.unheard:
            problems.append("unheard: decision")
        events = self._events.stats()
        if events.problem is not None:
            problems.append(f"outbox: {events.problem}")
        return BrokerHealth(
            responsive=responsive,
            puback_age_ms=None if last is None else (now_ns - last) / 1e6,
            events_waiting=events.depth,
            events_dropped=events.dropped,
            decisions_dropped=self._decisions_dropped,
            problems=tuple(problems),
            echo_age_ms=None if self._echo is None else self._echo.age_ms(now_ns),
        )

    def close(self, last_state: dict[str, Any], timeout_s: float) -> None:
        """Says `last_state`, waits up to `timeout_s` for acknowledgements, disconnects."""
        self._connector.stop()
        self.pump()  # a connection made a moment ago is there to say goodbye on
        connection = self._connection
        if connection is None or not connection.alive:
            if connection is not None:
                connection.close()
            return
        self.retain("state", last_state)
        until_ns = self._clock.mono_ns() + round(timeout_s * 1e9)
        pause = threading.Event()
        while connection.alive and self._clock.mono_ns() < until_ns:
            self.pump()
            if not self._unacked and self._events.idle():
                break
            pause.wait(0.005)
        self._events.connection_lost()
        connection.disconnect()

    def _responsive(self) -> bool:
        """True when nothing has waited long for its acknowledgement."""
        connection = self._connection
        if connection is None or not connection.alive:
            return False
        return self._oldest_unacked_ns() < UNRESPONSIVE_NS

    def _oldest_unacked_ns(self) -> int:
        oldest = min((sent.sent_ns for sent in list(self._unacked.values())), default=None)
        return 0 if oldest is None else self._clock.mono_ns() - oldest

    def _send(self, topic: Topic, payload: bytes) -> int | None:
        """One QoS 1 message, remembered until acknowledged; its id, None without connection."""
        now_ns = self._clock.mono_ns()
        message = self._message(topic, payload)
        mid = self._connection.publish(message) if self._connection else None
        if mid is not None:
            self._unacked[mid] = _Sent(topic.name, now_ns)
        return mid

    def _message(self, topic: Topic, payload: bytes) -> Message:
        name = f"{self._root}/{topic.name}"
        return Message(name, payload, topic.qos, topic.retain, topic.expiry_s)

    def _copy(self, name: str, payload: dict[str, Any]) -> None:
        for copy in self._copies:
            try:
                copy(name, payload)
            except Exception:  # metrics and the like must not cost a line its decision
                if name not in self._uncopied:
                    log.exception("a copy of %s failed; told once", name)
                self._uncopied.add(name)

    def _collect_acks(self) -> None:
        connection = self._connection
        if connection is None:
            return
        while connection.acks:
            ack = connection.acks.popleft()
            sent = self._unacked.pop(ack.mid, None)
            if sent is None:  # a decision or an answer
                if ack.refusal is not None:
                    log.warning("broker denies an answer (%s): check its access rules", ack.refusal)
                continue
            if ack.refusal is None:
                self._last_ack_ns = self._clock.mono_ns()
                self._denied.discard(sent.what)
            elif sent.what not in self._denied:
                self._denied.add(sent.what)
                log.error("broker denies %s/%s (%s)", self._root, sent.what, ack.refusal)
            self._events.acknowledged(ack.mid, ack.refusal)

    def _is_dead(self, connection: Connection) -> bool:
        """Lost, or silent for two keepalives although it owes acknowledgements."""
        patience_ns = 2 * self._settings.keepalive_s * 1_000_000_000
        return not connection.alive or self._oldest_unacked_ns() > patience_ns

    def _start_connecting(self) -> None:
        """Drops the dead connection, keeps its unacknowledged events, tries in a thread."""
        if self._connector.busy or self._connector.stopped:
            return
        if self._connection is not None:
            log.warning("connection to the broker lost")
        dead, self._connection = self._connection, None
        self._events.connection_lost()
        self._unacked.clear()
        self._connector.start(dead)

    def _adopt(self, connection: Connection) -> None:
        log.info("connected to the broker again")
        self._connection = connection
        if self._echo is not None:
            self._echo.connected()
        for name, payload in self._retained.items():
            self._send(RETAINED[name], payload)

    def _new_connection(self) -> Connection:
        client_id = self._root.replace("/", ":")
        return Connection(self._settings, client_id, self._will, self._topics, self._arrived)

    def _arrived(self, connection: Connection, incoming: Incoming) -> None:
        """An echo or a command, in the broker's thread."""
        name = incoming.topic.removeprefix(f"{self._root}/")
        if name == ECHO.name:
            if self._echo is not None:
                self._echo.heard(incoming.payload)
            return

        def answer(payload: dict[str, Any]) -> None:
            # A slow answer may outlive the connection that its command came on.
            self._answer(self._connection or connection, incoming, payload)

        verb = name.removeprefix(f"{COMMAND.name}/")
        self._on_command(verb, incoming.payload, incoming.retained, answer)

    def _answer(self, connection: Connection, incoming: Incoming, payload: dict[str, Any]) -> None:
        """Speaks where the sender asked for it, if that may be."""
        topic, correlation = incoming.response_topic, incoming.correlation
        if topic is None:
            return
        if not may_answer(self._root, topic) or len(correlation or b"") > MAX_CORRELATION:
            log.warning("no answer to a command: its response topic or correlation is refused")
            return
        message = Message(
            topic, encode(payload), REPLY.qos, expiry_s=REPLY.expiry_s, correlation=correlation
        )
        if connection.publish(message) is None:
            log.warning("no answer to a command: the connection is gone")
