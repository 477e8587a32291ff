"""A station as Sparkplug B sees it: an edge node with one device. No I/O, no clock.

The edge node is this process; the device is the station, with the last part's verdict, what the
line says of itself, and what decides. Specification: Eclipse Sparkplug 3.0, ISO/IEC 20237.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metal_edge.daemon.mqtt.connection import Message
from metal_edge.daemon.mqtt.sparkplug_wire import REBIRTH, DataType, Metric, Value, encode_payload

NAMESPACE = "spBv1.0"
NS_PER_MS = 1_000_000

# Everything the device will ever report; births must name it all.
METRICS: Mapping[str, DataType] = {
    "Part/Sequence": DataType.INT64,
    "Part/Id": DataType.STRING,
    "Part/Trigger": DataType.STRING,
    "Part/Verdict": DataType.STRING,
    "Part/Reason": DataType.STRING,
    "Part/Score": DataType.DOUBLE,
    "Part/Threshold": DataType.DOUBLE,
    "Part/Regions": DataType.UINT32,
    "Part/Exposure": DataType.DATE_TIME,
    "Line/Status": DataType.STRING,
    "Line/Problems": DataType.STRING,
    "Model/Id": DataType.STRING,
    "Model/Version": DataType.STRING,
    "Model/Digest": DataType.STRING,
    "Model/Threshold": DataType.DOUBLE,
}


class SparkplugNode:
    """Values and sequence numbers of one edge node.

    Args:
        group, node, device: the levels of its topics.
        session_id: of this run of the daemon, reported by the node.
    """

    def __init__(self, group: str, node: str, device: str, session_id: str) -> None:
        self._group = group
        self._node = node
        self._device = device
        self._session_id = session_id
        self._values: dict[str, Value] = dict.fromkeys(METRICS)
        self._seq = 0

    @property
    def command_topic(self) -> str:
        """To subscribe to, at QoS 1."""
        return f"{NAMESPACE}/{self._group}/NCMD/{self._node}"

    def death(self, bd_seq: int) -> Message:
        """NDEATH: the will of a connection. The only message at QoS 1, and without a `seq`."""
        metric = Metric("bdSeq", DataType.INT64, bd_seq, None)
        payload = encode_payload([metric], timestamp_ms=None, seq=None, birth=True)
        return Message(self._topic("NDEATH"), payload, qos=1, content_type=None)

    def births(self, bd_seq: int, now_ms: int) -> tuple[Message, Message]:
        """NBIRTH and DBIRTH: all that there is, with the values as they stand."""
        self._seq = 0
        node = [
            Metric("bdSeq", DataType.INT64, bd_seq, now_ms),
            Metric(REBIRTH, DataType.BOOLEAN, False, now_ms),
            Metric("Properties/Software", DataType.STRING, "metal-edge", now_ms),
            Metric("Properties/Session", DataType.STRING, self._session_id, now_ms),
        ]
        device = [Metric(name, kind, self._values[name], now_ms) for name, kind in METRICS.items()]
        return (
            self._message("NBIRTH", node, now_ms, birth=True),
            self._message("DBIRTH", device, now_ms, birth=True),
        )

    def observe(self, name: str, payload: Mapping[str, Any]) -> dict[str, Value]:
        """Takes one of our own payloads in; gives the metrics that changed."""
        read = {"decision": _of_decision, "state": _of_state, "model": _of_model}.get(name)
        values = {} if read is None else read(payload)
        changed = {key: value for key, value in values.items() if self._values[key] != value}
        self._values.update(changed)
        return changed

    def data(self, changed: Mapping[str, Value], at_ms: int, now_ms: int) -> Message:
        """DDATA with the metrics that changed, at `at_ms`."""
        metrics = [Metric(name, METRICS[name], value, at_ms) for name, value in changed.items()]
        return self._message("DDATA", metrics, now_ms, birth=False)

    def _message(self, kind: str, metrics: list[Metric], now_ms: int, *, birth: bool) -> Message:
        payload = encode_payload(metrics, timestamp_ms=now_ms, seq=self._seq, birth=birth)
        self._seq = (self._seq + 1) % 256
        return Message(self._topic(kind), payload, qos=0, content_type=None)

    def _topic(self, kind: str) -> str:
        topic = f"{NAMESPACE}/{self._group}/{kind}/{self._node}"
        return f"{topic}/{self._device}" if kind.startswith("D") else topic


def _of_decision(payload: Mapping[str, Any]) -> dict[str, Value]:
    exposure_ns = payload["t_exposure_ns"]
    return {
        "Part/Sequence": payload["seq"],
        "Part/Id": payload["part_id"],
        "Part/Trigger": payload["trigger_id"],
        "Part/Verdict": payload["verdict"],
        "Part/Reason": payload["reason"],
        "Part/Score": payload["score"],
        "Part/Threshold": payload["threshold"],
        "Part/Regions": len(payload["regions"]),
        "Part/Exposure": None if exposure_ns is None else exposure_ns // NS_PER_MS,
    }


def _of_state(payload: Mapping[str, Any]) -> dict[str, Value]:
    return {"Line/Status": payload["status"], "Line/Problems": ", ".join(payload["problems"])}


def _of_model(payload: Mapping[str, Any]) -> dict[str, Value]:
    return {
        "Model/Id": payload["id"],
        "Model/Version": payload["version"],
        "Model/Digest": payload["sha256"],
        "Model/Threshold": payload["thresholds"]["score"],
    }
