"""An MQTT 5 client that shows what is on the wire: raw payloads, properties, PUBACK reasons."""

from __future__ import annotations

import ssl
import threading
import uuid
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from support.broker import Broker, wait_until


class Wire:
    """Subscribes to `topics`; every message is kept as paho gives it."""

    def __init__(
        self,
        broker: Broker,
        *topics: str,
        username: str = "",
        password: str = "",
        ca: Path | None = None,
    ) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self._acks: dict[int, str] = {}
        self._ready = threading.Event()
        self._topics = topics
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"wire-{uuid.uuid4()}", protocol=paho.MQTTv5
        )
        if username:
            self._client.username_pw_set(username, password)
        if ca is not None:
            self._client.tls_set_context(ssl.create_default_context(cafile=str(ca)))
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._connected
        self._client.on_disconnect = lambda *unused: self._ready.clear()
        self._client.on_subscribe = lambda *unused: self._ready.set()
        self._client.on_message = lambda _c, _d, message: self.messages.append(message)
        self._client.on_publish = self._published
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self.wait_subscribed()

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        response: str = "",
        correlation: bytes = b"",
    ) -> str:
        """Publishes, waits for the broker's word at QoS 1, and gives it."""
        properties = Properties(PacketTypes.PUBLISH)
        if response:
            properties.ResponseTopic = response
            properties.CorrelationData = correlation
        mid = self._client.publish(topic, payload, qos, retain, properties).mid
        if qos == 0:
            return ""
        return str(wait_until(lambda: self._acks.get(mid), f"the PUBACK for {topic}"))

    def wait_subscribed(self) -> None:
        """Returns when it hears the broker, again if need be."""
        assert self._ready.wait(10)

    def named(self, name: str) -> list[paho.MQTTMessage]:
        """What was heard so far on `.../name`."""
        return [m for m in list(self.messages) if m.topic == name or m.topic.endswith("/" + name)]

    def wait(self, name: str, count: int = 1, timeout_s: float = 10.0) -> paho.MQTTMessage:
        """The `count`-th message on `.../name`."""
        wait_until(lambda: len(self.named(name)) >= count, f"{count} on {name}", timeout_s)
        return self.named(name)[count - 1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: paho.Client, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        assert not code.is_failure, code
        if self._topics:
            # The retain flag as the sender set it, not as the broker would for a live message.
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            client.subscribe([(topic, options) for topic in self._topics])
        else:
            self._ready.set()

    def _published(self, _c: Any, _d: Any, mid: int, code: Any, _p: Any) -> None:
        self._acks[mid] = str(code)
