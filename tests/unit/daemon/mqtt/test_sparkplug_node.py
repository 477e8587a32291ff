"""One edge node and its device: births name everything, data only what changed, seq never skips."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.sparkplug_proto import decode, values

from metal_edge.daemon.mqtt.sparkplug_node import METRICS, SparkplugNode


def node() -> SparkplugNode:
    return SparkplugNode("acme", "press1-top", "top", "session-1")


def decision(verdict: str = "pass", **more: Any) -> dict[str, Any]:
    return {
        "seq": 1,
        "part_id": "p",
        "trigger_id": "t",
        "verdict": verdict,
        "reason": "ok",
        "score": 0.25,
        "threshold": 0.5,
        "regions": [],
        "t_exposure_ns": 1_700_000_000_123_456_789,
        **more,
    }


def test_a_death_is_a_bdseq_and_nothing_else() -> None:
    will = node().death(254)
    assert (will.topic, will.qos, will.retain) == ("spBv1.0/acme/NDEATH/press1-top", 1, False)
    message = decode(will.payload)
    assert values(message) == {"bdSeq": 254}
    assert not message.HasField("seq")
    assert not message.HasField("timestamp")


def test_births_name_all_that_there_will_ever_be() -> None:
    one = node()
    one.observe("decision", decision())
    node_birth, device_birth = one.births(7, 1000)
    assert node_birth.topic == "spBv1.0/acme/NBIRTH/press1-top"
    assert device_birth.topic == "spBv1.0/acme/DBIRTH/press1-top/top"
    assert {m.qos for m in (node_birth, device_birth)} == {0}
    first, second = decode(node_birth.payload), decode(device_birth.payload)
    assert (first.seq, second.seq, first.timestamp) == (0, 1, 1000)
    told = values(first)
    assert (told["bdSeq"], told["Node Control/Rebirth"]) == (7, False)
    assert told["Properties/Session"] == "session-1"
    device = values(second)
    assert device.keys() == METRICS.keys()
    assert (device["Part/Verdict"], device["Part/Score"]) == ("pass", 0.25)
    assert device["Part/Exposure"] == 1_700_000_000_123
    assert device["Model/Id"] is None, "nobody told it yet"
    assert all(metric.datatype == METRICS[metric.name] for metric in second.metrics)


def test_data_is_what_changed_without_types() -> None:
    one = node()
    one.births(0, 0)
    assert one.observe("decision", decision()).keys() == {
        name for name in METRICS if name.startswith("Part/")
    }
    changed = one.observe("decision", decision("unknown", score=None))
    message = decode(one.data(changed, 5, 6).payload)
    assert values(message) == {"Part/Verdict": "unknown", "Part/Score": None}
    assert (message.timestamp, message.metrics[0].timestamp) == (6, 5)
    assert not any(metric.HasField("datatype") for metric in message.metrics)
    assert one.observe("decision", decision("unknown", score=None)) == {}
    state = one.observe("state", {"status": "degraded", "problems": ["broker", "camera"]})
    assert state == {"Line/Status": "degraded", "Line/Problems": "broker, camera"}
    assert one.observe("config", {"anything": 1}) == {}


@given(st.lists(st.sampled_from(["data", "birth"]), max_size=40), st.integers(0, 600))
def test_every_message_has_the_next_number(steps: list[str], many: int) -> None:
    one = node()
    numbers = [decode(m.payload).seq for m in one.births(0, 0)]
    assert numbers == [0, 1]
    expected = 2
    for step in steps + ["data"] * many:
        if step == "birth":
            assert [decode(m.payload).seq for m in one.births(0, 0)] == [0, 1]
            expected = 2
        else:
            message = one.data({"Part/Id": "x"}, 0, 0)
            assert message.topic == "spBv1.0/acme/DDATA/press1-top/top"
            assert decode(message.payload).seq == expected % 256
            expected += 1
