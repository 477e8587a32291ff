"""The PLC's MQTT 5 connection, and what wakes its conveyor thread."""

from __future__ import annotations

import json
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from metal_edge.demo.gate import Cause, Echo, GateRecord, LateDecision, RejectGate
from metal_edge.demo.gate_messages import SCHEMA, is_refusal
from metal_edge.errors import MetalEdgeError, UnavailableError

KEEPALIVE_S = 5
CONNECT_TIMEOUT_S = 5.0
COMMAND_EXPIRY_S = 10
MAX_QUEUED_COMMANDS = 20  # a broker that hangs must not be fed old triggers later
MAX_PACKET_BYTES = 1_048_576  # the broker drops larger messages before they reach us
MAX_LATE = 1024
SUBSCRIPTIONS = (("state", 1), ("decision", 0), ("heartbeat", 0))  # who lives comes first


class Waker:
    """Waits on CLOCK_MONOTONIC that a signal or another thread can end.

    SIGINT and SIGTERM are noted in `stopped_by`, SIGUSR1, the operator's button, is counted in
    `acknowledged`. Python writes a byte to the socket when one
    arrives, so no lock is taken inside a signal handler. Main thread only.
    """

    def __init__(self) -> None:
        self.stopped_by: str | None = None
        self.acknowledged = 0
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def __enter__(self) -> Waker:
        self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._old_handlers = {number: signal.signal(number, self._on_signal) for number in wanted}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._read.close()
        self._write.close()

    def wake(self) -> None:
        """Ends the wait under way, or the next one."""
        with suppress(BlockingIOError):  # a full buffer wakes as well
            self._write.send(b"\0")

    def wait_until(self, deadline_ns: int) -> None:
        """Returns at `deadline_ns` (CLOCK_MONOTONIC) or when woken, whichever comes first."""
        left_s = max(0, deadline_ns - time.monotonic_ns()) / 1e9
        if select.select([self._read], [], [], left_s)[0]:
            self._read.recv(4096)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.acknowledged += 1
        else:
            self.stopped_by = signal.Signals(number).name


def _send_at_once(_client: mqtt.Client, _data: Any, sock: Any) -> None:
    """Turns Nagle's algorithm off: a trigger must not wait for a delayed ACK."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class PlcLink:
    """Feeds the gate with what the broker delivers, and sends triggers.

    paho's thread and the conveyor's take turns at the gate under one lock; events are stamped
    inside it, so the gate sees time in order.

    Args:
        run_id: makes client id and response topic unique.
        wake: called when the gate's readiness changed, or a late decision came.
        echo: answer each heartbeat that counts on `echo`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        root: str,
        *,
        run_id: str,
        gate: RejectGate,
        wake: Callable[[], None],
        echo: bool = True,
    ) -> None:
        self.root = root
        self._echoes = echo
        self.address = f"{host}:{port}"
        self._host, self._port = host, port
        self._gate = gate
        self._wake = wake
        self._lock = threading.Lock()
        self._late: deque[LateDecision] = deque(maxlen=MAX_LATE)
        self._problem: MetalEdgeError | None = None
        self._broken: Exception | None = None
        self._unsent = self._undelivered = self._refused = self._after_gate = 0
        self._reply = f"reply/plc-{run_id}"  # the daemon answers below reply/ only
        self._client = client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"plc-{run_id}", protocol=mqtt.MQTTv5
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.reconnect_delay_set(1, 5)
        client.max_queued_messages_set(MAX_QUEUED_COMMANDS)
        client.on_socket_open = _send_at_once
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message

    def __enter__(self) -> PlcLink:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        try:
            self._client.connect(self._host, self._port, KEEPALIVE_S, properties=properties)
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"no MQTT broker at {self.address} ({error})", "start it, or correct --host/--port"
            ) from error
        self._client.loop_start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def check(self) -> None:
        """Raises what went wrong for good: a refusal by the broker, a defect in a callback."""
        if self._broken is not None:
            raise self._broken
        if self._problem is not None:
            raise self._problem

    def fault(self) -> Cause | None:
        """Why the gate is not armed, or None."""
        return self.link()[0]

    def link(self) -> tuple[Cause | None, str | None]:
        """The same, and the session it is about, as of now."""
        with self._lock:
            fault = self._gate.link_fault(time.monotonic_ns())
            return fault, self._gate.session_id

    def trigger(
        self,
        trigger_id: str,
        part_id: str,
        gate_ns: int,
        margin_ms: float,
        *,
        leaves_ns: int | None,
        golden: bool,
    ) -> None:
        """Registers the part with the gate, then asks the daemon for its verdict.

        Without a connection nothing is sent: paho would queue it, and a trigger that arrives
        when the part is long gone makes the daemon look at the wrong one.
        """
        with self._lock:
            now = time.monotonic_ns()
            self._gate.on_trigger(
                trigger_id, part_id, now, gate_ns, leaves_ns=leaves_ns, golden=golden
            )
        deadline_ms = max(1.0, (gate_ns - now) / 1e6 - margin_ms)
        command = {"trigger_id": trigger_id, "part_id": part_id, "deadline_ms": deadline_ms}
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.MessageExpiryInterval = COMMAND_EXPIRY_S
        properties.ResponseTopic = f"{self.root}/{self._reply}"
        properties.CorrelationData = trigger_id.encode("ascii")
        if not self._client.is_connected():
            self._unsent += 1
            return
        payload = json.dumps(command).encode("ascii")
        topic = f"{self.root}/cmd/trigger"
        info = self._client.publish(topic, payload, qos=1, properties=properties)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            self._unsent += 1

    def at_gate(self, trigger_id: str) -> GateRecord:
        """The gate's verdict on the part that stands there now."""
        with self._lock:
            return self._gate.at_gate(trigger_id, time.monotonic_ns())

    def line_stopped(self) -> None:
        """Condemns what is on the belt."""
        with self._lock:
            self._gate.on_line_stopped(time.monotonic_ns())

    def take_late(self) -> list[LateDecision]:
        """Decisions that came after their part had left the gate, since the last call."""
        taken = []
        while self._late:
            taken.append(self._late.popleft())
        return taken

    def counters(self) -> dict[str, int]:
        """What a line engineer would look at when parts are rejected without a verdict."""
        return {
            "malformed_messages": self._gate.malformed,
            "stray_messages": self._gate.stray,
            "decisions_after_gate": self._after_gate,
            "triggers_unsent": self._unsent,
            "triggers_undelivered": self._undelivered,
            "triggers_refused": self._refused,
        }

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        if code.is_failure:
            self._fail(f"broker {self.address} refused the PLC ({code})", "check its access rules")
            return
        wanted = (*SUBSCRIPTIONS, (self._reply, 1))
        client.subscribe([(f"{self.root}/{name}", qos) for name, qos in wanted])

    def _on_subscribe(
        self, _client: mqtt.Client, _data: Any, _mid: int, codes: list[ReasonCode], _p: Any
    ) -> None:
        if any(code.is_failure for code in codes):
            self._fail(f"broker {self.address} refused {self.root}/#", "check its access rules")

    def _on_disconnect(self, _client: mqtt.Client, _d: Any, _f: Any, _code: Any, _p: Any) -> None:
        with self._lock:
            self._gate.on_broker_lost(time.monotonic_ns())
        self._wake()

    def _on_publish(
        self, _client: mqtt.Client, _data: Any, _mid: int, code: ReasonCode, _properties: Any
    ) -> None:
        if code.is_failure or code == "No matching subscribers":
            self._undelivered += 1

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            self._deliver(message)
        except Exception as error:
            self._broken = error  # paho's thread ends here: no heartbeat, so the gate rejects
            self._wake()
            raise

    def _deliver(self, message: mqtt.MQTTMessage) -> None:
        name, payload = message.topic.removeprefix(f"{self.root}/"), bytes(message.payload)
        with self._lock:
            now, before, late, beat = time.monotonic_ns(), self._gate.fault, None, None
            if name == "decision":
                late = self._gate.on_decision(payload, now, retained=message.retain)
            elif name == "heartbeat":
                beat = self._gate.on_heartbeat(payload, now, retained=message.retain)
            elif name == "state":
                self._gate.on_state(payload, now)
            elif name == self._reply and is_refusal(payload):
                self._refused += 1
            changed = self._gate.fault is not before
        if beat is not None and self._echoes:
            self._echo(beat)
        if late is not None:
            self._after_gate += 1
            self._late.append(late)
        if changed or late is not None:
            self._wake()

    def _echo(self, echo: Echo) -> None:
        """Tells the daemon that somebody listens. A lost one is not repeated: the next is near."""
        payload = json.dumps({"schema": SCHEMA, **echo._asdict()}).encode("utf-8")
        self._client.publish(f"{self.root}/echo", payload, qos=0)

    def _fail(self, what: str, remedy: str) -> None:
        self._problem = UnavailableError(what, remedy)
        self._wake()
