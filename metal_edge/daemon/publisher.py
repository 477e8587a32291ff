"""What is published when: a real-time decision at once or never, an audit event for sure.

One thread, the deciding loop, calls `pump`, `heartbeat` and `retain`; decisions, events and
answers may also come from the broker's thread. Only the connecting itself, which blocks, has a
thread of its own.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.connection import Connection, Incoming, Message
from metal_edge.daemon.events import EventSender
from metal_edge.daemon.messages import encode
from metal_edge.daemon.outbox import MemoryOutbox, Outbox
from metal_edge.errors import MetalEdgeError
from metal_edge.settings import MqttSettings

log = logging.getLogger(__name__)

DECISION_EXPIRY_S = 1
HEARTBEAT_EXPIRY_S = 1
EVENT_EXPIRY_S = 7 * 24 * 3600
ANSWER_EXPIRY_S = 10
# A message unacknowledged for this long: the broker hangs, so a decision would arrive stale.
UNRESPONSIVE_NS = 1_000_000_000
RECONNECT_FIRST_S = 1.0
RECONNECT_LONGEST_S = 5.0
MAX_CORRELATION = 256
MAX_RESPONSE_TOPIC = 256

Handler = Callable[[str, bytes, bool], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class BrokerHealth:
    """How the broker is doing, judged by its acknowledgements."""

    responsive: bool
    puback_age_ms: float | None
    events_waiting: int
    events_dropped: int
    decisions_dropped: int
    problems: tuple[str, ...]


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
        on_command: called with verb, payload and whether it was retained; gives the answer.
        clock: ages of acknowledgements are measured on its monotonic side.
        verbs: of the commands to listen for.
        outbox: where audit events wait; by default in memory, `settings.event_queue` of them.
    """

    def __init__(
        self,
        settings: MqttSettings,
        topic_root: str,
        *,
        will: dict[str, Any],
        on_command: Handler,
        clock: Clock,
        verbs: tuple[str, ...] = ("trigger",),
        outbox: Outbox | None = None,
    ) -> None:
        self._settings = settings
        self._root = topic_root
        self._will = Message(f"{topic_root}/state", encode(will), qos=1, retain=True)
        self._on_command = on_command
        self._clock = clock
        self._topics = tuple(f"{topic_root}/cmd/{verb}" for verb in verbs)
        self._random = random.Random()  # noqa: S311  (spreads reconnections, guards nothing)
        self._connection: Connection | None = None
        self._waiting_connection: deque[Connection] = deque(maxlen=1)
        self._connector: threading.Thread | None = None
        self._stopping = threading.Event()
        self._retained: dict[str, bytes] = {}
        self._outbox: Outbox = outbox or MemoryOutbox(settings.event_queue)
        self._events = EventSender(self._outbox)
        self._unacked: dict[int, _Sent] = {}
        self._last_ack_ns: int | None = None
        self._decisions_dropped = 0
        self._denied: set[str] = set()
        self._callback_failed = False

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
        self._send_retained(name)

    def decision(self, payload: dict[str, Any]) -> bool:
        """Sends a decision now or never: one that waited would reject the wrong part.

        Returns:
            False when the broker is away or does not answer; the decision is counted, not kept.
        """
        message = Message(
            f"{self._root}/decision", encode(payload), qos=0, expiry_s=DECISION_EXPIRY_S
        )
        connection = self._connection
        if connection is None or not self._responsive() or connection.publish(message) is None:
            self._decisions_dropped += 1
            return False
        return True

    def event(self, payload: dict[str, Any]) -> None:
        """Puts the audit copy into the outbox; `pump` sends it."""
        self._outbox.put(payload["event_id"], encode(payload))

    def heartbeat(self, payload: dict[str, Any]) -> None:
        """Sends a sign of life, unless earlier ones still hang: old ones must not pile up."""
        if self._responsive():
            self._send("heartbeat", encode(payload), HEARTBEAT_EXPIRY_S)

    def pump(self) -> None:
        """Moves things on: acknowledgements, waiting events, a lost connection."""
        self._collect_acks()
        if self._waiting_connection:
            self._adopt(self._waiting_connection.popleft())
        if self._connection is None or self._is_dead(self._connection):
            self._start_connecting()
            return
        self._events.pump(lambda event: self._send("event", event, EVENT_EXPIRY_S))

    def health(self) -> BrokerHealth:
        """See BrokerHealth."""
        now_ns = self._clock.mono_ns()
        last = self._last_ack_ns
        problems = [f"denied: {name}" for name in sorted(self._denied)]
        responsive = self._responsive()
        if not responsive:
            problems.append("broker")
        if self._callback_failed:
            problems.append("callback")
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
        )

    def close(self, last_state: dict[str, Any], timeout_s: float) -> None:
        """Says `last_state`, waits up to `timeout_s` for acknowledgements, disconnects."""
        self._stopping.set()
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
        lost = self.health().events_waiting
        if lost:
            log.warning("%d events were not acknowledged and are lost", lost)
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

    def _send(
        self,
        name: str,
        payload: bytes,
        expiry_s: int | None = None,
        retain: bool = False,
    ) -> int | None:
        """One QoS 1 message, remembered until acknowledged; its id, None without connection."""
        message = Message(f"{self._root}/{name}", payload, 1, retain, expiry_s)
        now_ns = self._clock.mono_ns()
        mid = self._connection.publish(message) if self._connection else None
        if mid is not None:
            self._unacked[mid] = _Sent(name, now_ns)
        return mid

    def _send_retained(self, name: str) -> None:
        self._send(name, self._retained[name], retain=True)

    def _collect_acks(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._callback_failed |= connection.callback_failed
        while connection.acks:
            ack = connection.acks.popleft()
            sent = self._unacked.pop(ack.mid, None)
            if sent is None:  # a decision or an answer
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
        if self._connector is not None and self._connector.is_alive():
            return
        if self._stopping.is_set() or self._waiting_connection:
            return
        if self._connection is not None:
            log.warning("connection to the broker lost")
        dead, self._connection = self._connection, None
        self._events.connection_lost()
        self._unacked.clear()
        self._connector = threading.Thread(
            target=self._connect, args=(dead,), name="mqtt-connect", daemon=True
        )
        self._connector.start()

    def _connect(self, dead: Connection | None) -> None:
        """The connecting thread: ends with a connection, or when the daemon stops."""
        if dead is not None:
            dead.close()
        delay_s, told = RECONNECT_FIRST_S, ""
        while not self._stopping.wait(delay_s * self._random.uniform(0.75, 1.0)):
            connection = self._new_connection()
            try:
                connection.open()
            except MetalEdgeError as error:
                if str(error) != told:
                    log.warning("%s", error)
                told = str(error)
                delay_s = min(2 * delay_s, RECONNECT_LONGEST_S)
                continue
            except Exception:
                log.exception("connecting to the broker failed")
                delay_s = RECONNECT_LONGEST_S
                continue
            self._waiting_connection.append(connection)
            return

    def _adopt(self, connection: Connection) -> None:
        log.info("connected to the broker again")
        self._connection = connection
        for name in self._retained:
            self._send_retained(name)

    def _new_connection(self) -> Connection:
        client_id = self._root.replace("/", ":")
        return Connection(self._settings, client_id, self._will, self._topics, self._arrived)

    def _arrived(self, connection: Connection, incoming: Incoming) -> None:
        """A command, in the broker's thread. Answers where the sender asked, if it may be."""
        verb = incoming.topic.rpartition("/")[2]
        answer = self._on_command(verb, incoming.payload, incoming.retained)
        topic, correlation = incoming.response_topic, incoming.correlation
        if topic is None:
            return
        if not self._may_answer(topic) or len(correlation or b"") > MAX_CORRELATION:
            log.warning("no answer to a command: its response topic or correlation is refused")
            return
        message = Message(
            topic, encode(answer), 1, expiry_s=ANSWER_EXPIRY_S, correlation=correlation
        )
        if connection.publish(message) is None:
            log.warning("no answer to a command: the connection is gone")

    def _may_answer(self, topic: str) -> bool:
        """A sender must not make us speak on our own topics, where a PLC believes us."""
        if not 0 < len(topic) <= MAX_RESPONSE_TOPIC or topic.startswith("$"):
            return False
        if any(character in topic for character in "+#\0"):
            return False
        own = topic == self._root or topic.startswith(self._root + "/")
        return not own or topic.startswith(self._root + "/reply/")
