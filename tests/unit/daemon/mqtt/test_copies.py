"""What may go wrong beside a decision without the decision's noticing."""

from __future__ import annotations

from typing import Any

import pytest

from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.mqtt.publisher import Publisher
from metal_edge.settings import MqttSettings


def test_a_defect_in_who_hears_a_copy_costs_the_copy(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def broken(name: str, payload: dict[str, Any]) -> None:
        raise KeyError(name)

    publisher = Publisher(
        MqttSettings(),
        "root",
        will={"session_id": "s"},
        on_command=lambda verb, payload, retained, send: None,
        clock=SystemClock(),
        copies=(broken, lambda name, payload: heard.append(name)),
    )
    for _ in range(3):
        assert publisher.decision({}, b"{}") is False  # there is no broker
    publisher.retain("state", {})
    publisher.heartbeat({})
    assert heard == ["decision"] * 3 + ["state", "heartbeat"]
    assert caplog.text.count("KeyError: 'decision'") == 1
