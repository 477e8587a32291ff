"""One MQTT 5 connection, from CONNECT to its end. It never reconnects: a new one is made.

paho's own reconnection replays whatever was in flight, stale heartbeats included, and an
exception in a callback ends its thread while `is_connected()` stays true. With one client per
connection nothing outlives a broken line, and a dead thread is just another broken line.

Callbacks run in paho's thread, some under its locks: they only note what happened.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from metal_edge.daemon.mqtt.tls import client_context, silence_remedy, tls_remedy
from metal_edge.errors import UnavailableError
from metal_edge.settings import MqttSettings

log = logging.getLogger(__name__)

# Larger packets do not even leave the broker.
MAX_PACKET = 65_536
# QoS 1 messages waiting in paho; only answers to commands can come near.
MAX_QUEUED = 1000
DISCONNECT_WITH_WILL = 4  # MQTT 5, 3.14.2.1
# A packet is in the socket within a tenth of this, unless the socket is full.
HAND_OVER_S = 0.002
CLOSED = "Unspecified error"  # paho's word for a socket that was closed on us


@dataclass(frozen=True, slots=True)
class Message:
    """Something to publish. `expiry_s` is MQTT's message expiry interval; JSON unless said."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    expiry_s: int | None = None
    correlation: bytes | None = None
    content_type: str | None = "application/json"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that arrived, with what MQTT 5 needs for an answer."""

    topic: str
    payload: bytes
    retained: bool
    response_topic: str | None
    correlation: bytes | None


@dataclass(frozen=True, slots=True)
class Ack:
    """The broker's word on one QoS 1 message; `refusal` is None when it took it."""

    mid: int
    refusal: str | None


def _send_at_once(_client: paho.Client, _data: Any, sock: Any) -> None:
    """Turns Nagle's algorithm off.

    With it, a decision that follows a PUBACK waits for the peer's delayed ACK: measured on
    loopback, 43 ms from exposure to PLC instead of 20 (p50 of `make demo`).
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Client(paho.Client):
    """paho's thread ends on an exception in paho itself, and `is_connected()` stays true.

    Attributes:
        on_end: called when the thread ends, for whatever reason.
    """

    on_end: Callable[[], None]

    def loop_forever(
        self, timeout: float = 1.0, retry_first_connection: bool = False
    ) -> MQTTErrorCode:
        """What `loop_start` runs in its thread."""
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception:
            log.exception("the MQTT client broke; the connection is given up")
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self.on_end()


def _nothing() -> None:
    """In place of a callback that nobody waits for any more."""


class Connection:
    """One paho client, used for one connection.

    Args:
        settings: broker, credentials, TLS.
        client_id: the same for every connection of a station, so that the broker drops the
            previous one, and publishes its will, before this one says that it is online.
        will: what the broker says when this connection breaks; None: nothing.
        topics: to subscribe to, at QoS 1.
        on_message: called in paho's thread for each message of these topics.
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        will: Message | None,
        topics: tuple[str, ...],
        on_message: Callable[[Connection, Incoming], None],
    ) -> None:
        self.acks: deque[Ack] = deque()
        self._failing: set[str] = set()
        self._settings = settings
        self._topics = topics
        self._on_message = on_message
        self._answered = threading.Event()
        self._refusal: str | None = "no answer"
        self._socket_fault: str | None = None
        # True once a CONNECT packet was sent, whatever became of it.
        self.reached = False
        self._lost = threading.Event()
        self._thread_id: int | None = None  # paho's own
        self._client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        if will is not None:
            self._client.will_set(
                will.topic, will.payload, will.qos, will.retain, _publish_properties(will)
            )
        self._client.on_end = self._lost.set
        self._client.connect_timeout = settings.connect_timeout_s
        self._client.max_queued_messages_set(MAX_QUEUED)
        self._client.on_socket_open = _send_at_once
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._subscribed
        self._client.on_disconnect = self._disconnected
        self._client.on_publish = self._published
        self._client.on_message = self._arrived
        self._client.on_log = self._note_fault

    @property
    def callback_failed(self) -> bool:
        """True while the last message of some topic could not be handled."""
        return bool(self._failing)

    @property
    def alive(self) -> bool:
        """False once the connection is known to be gone. True proves nothing: see PUBACKs."""
        return self._answered.is_set() and not self._lost.is_set()

    def open(self) -> None:
        """Connects and subscribes; returns when the broker has agreed to both.

        Raises:
            UnavailableError: not there, refused, or no answer in time; names host and port.
        """
        self._use_credentials()
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_PACKET
        host, port = self._settings.host, self._settings.port
        try:
            self._client.connect(
                host, port, self._settings.keepalive_s, clean_start=True, properties=properties
            )
        except (OSError, ValueError) as error:
            raise self._unavailable(f"cannot be reached ({error})", _remedy(error)) from error
        self.reached = True
        self._client.loop_start()
        self._answered.wait(self._settings.connect_timeout_s)
        self._client.on_log = None  # paho would go on to format a line for every packet
        if self._refusal is not None:
            self.close()
            why = self._socket_fault or self._refusal
            raise self._unavailable(f"refused the connection ({why})", self._refusal_remedy(why))

    def publish(self, message: Message) -> int | None:
        """Hands one message to the client; its id, or None when there is no connection."""
        if not self.alive:
            return None
        info = self._client.publish(
            message.topic,
            message.payload,
            message.qos,
            message.retain,
            _publish_properties(message),
        )
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None
        if message.qos == 0 and threading.get_ident() != self._thread_id:
            # paho's thread needs the interpreter to write it. Whoever publishes would go on and
            # keep it, for up to a whole switch interval.
            try:
                info.wait_for_publish(HAND_OVER_S)
            except RuntimeError:  # the connection was lost meanwhile
                return None
        return info.mid

    def disconnect(self, *, with_will: bool = False) -> None:
        """Says goodbye, which cancels the will unless it is asked for, and closes."""
        reason = None
        if with_will:
            reason = ReasonCode(PacketTypes.DISCONNECT, identifier=DISCONNECT_WITH_WILL)
        self._client.disconnect(reason)
        self._lost.wait(0.3)
        self.close()

    def close(self) -> None:
        """Closes the socket, so that paho's thread cannot wait for a silent broker."""
        self._lost.set()
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                log.debug("socket was closed already (%s)", error)
        self._client.loop_stop()
        self._let_go()

    def _let_go(self) -> None:
        """Breaks the circle between paho's client and this object.

        Without it a dead client, and the sockets it wakes itself with, wait for the garbage
        collector: descriptors grew by two for each reconnection for a while.
        """
        client = self._client
        client.on_end = _nothing
        client.on_connect = client.on_subscribe = client.on_disconnect = None
        client.on_publish = client.on_message = client.on_log = None

    def _use_credentials(self) -> None:
        settings = self._settings
        user = settings.username
        if settings.username_file is not None:
            user = _read_secret("mqtt.username_file", settings.username_file)
        if user is not None and settings.password_file is not None:
            password = _read_secret("mqtt.password_file", settings.password_file)
            self._client.username_pw_set(user, password)
        context = client_context(settings)
        if context is not None:
            self._client.tls_set_context(context)

    def _refusal_remedy(self, why: str) -> str:
        """A socket closed without a word was closed by TLS: an alert is easily lost on the way."""
        remedy = tls_remedy(why)
        if remedy is None and self._refusal == CLOSED:
            remedy = silence_remedy(self._settings)
        return remedy or "check mqtt.username, mqtt.password_file and the broker's access rules"

    def _unavailable(self, what: str, remedy: str) -> UnavailableError:
        where = f"{self._settings.host}:{self._settings.port}"
        return UnavailableError(f"MQTT broker {where} {what}", remedy)

    def _connected(
        self, client: paho.Client, data: Any, flags: Any, code: ReasonCode, properties: Any
    ) -> None:
        self._thread_id = threading.get_ident()
        if code.is_failure:
            self._answer(str(code))
            return
        if not self._topics:
            self._answer(None)
            return
        # Retained commands are old commands.
        # The flag must arrive as it was sent: who retains commands is to be told.
        options = SubscribeOptions(
            qos=1, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND
        )
        client.subscribe([(topic, options) for topic in self._topics])

    def _subscribed(
        self, client: Any, data: Any, mid: int, codes: list[ReasonCode], properties: Any
    ) -> None:
        refused = [
            f"{topic}: {code}"
            for topic, code in zip(self._topics, codes, strict=False)
            if code.is_failure
        ]
        self._answer(f"subscription {refused[0]}" if refused else None)

    def _answer(self, refusal: str | None) -> None:
        self._refusal = refusal
        self._answered.set()

    def _note_fault(self, client: Any, data: Any, level: int, text: str) -> None:
        """paho tells of a socket's fault, a TLS alert say, in its log only. The first counts."""
        if level == LogLevel.MQTT_LOG_ERR and self._socket_fault is None:
            self._socket_fault = text

    def _disconnected(
        self, client: Any, data: Any, flags: Any, code: ReasonCode, properties: Any
    ) -> None:
        self._lost.set()
        if not self._answered.is_set():
            self._answer(str(code))

    def _published(
        self, client: Any, data: Any, mid: int, code: ReasonCode, properties: Any
    ) -> None:
        self.acks.append(Ack(mid, str(code) if code.is_failure else None))

    def _arrived(self, client: Any, data: Any, message: paho.MQTTMessage) -> None:
        """An exception that left here would end paho's thread without a word.

        So none leaves, whatever it is: one part goes without an answer, which its gate takes for
        a reject, and the line says `degraded` until a message of that topic is handled again.
        """
        try:
            properties = message.properties
            self._on_message(
                self,
                Incoming(
                    message.topic,
                    bytes(message.payload),
                    message.retain,
                    getattr(properties, "ResponseTopic", None),
                    getattr(properties, "CorrelationData", None),
                ),
            )
            self._failing.discard(message.topic)
        except Exception:
            self._failing.add(message.topic)
            log.exception("handling a message of %.200a failed", message.topic)


def _read_secret(key: str, path: Path) -> str:
    """A file's one line.

    Raises:
        UnavailableError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnavailableError(
            f"{key} {path} cannot be read ({error})", "make it readable for the service"
        ) from error


def _remedy(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return tls_remedy(f"ssl {error}") or (
            "check mqtt.ca_file, the broker's certificate, its name and its dates"
        )
    return "check mqtt.host, mqtt.port, and that the broker runs"


def _publish_properties(message: Message) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if message.content_type is not None:
        properties.PayloadFormatIndicator = 1  # UTF-8
        properties.ContentType = message.content_type
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    if message.correlation is not None:
        properties.CorrelationData = message.correlation
    return properties
