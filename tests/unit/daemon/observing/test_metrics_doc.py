"""docs/observability.md lists the metrics that there are, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.mqtt.payloads import HeartbeatPayload
from metal_edge.daemon.observing import metrics
from metal_edge.daemon.observing.tally import Tally

PAGE = Path(__file__).parents[4] / "docs" / "observability.md"


def test_the_table_is_complete() -> None:
    rows = {}
    for name, kind, labels, about in re.findall(
        r"^\| `(\w+)` \| (gauge|counter|histogram) \| (.*?) ?\| (.*) \|$", PAGE.read_text(), re.M
    ):
        rows[name] = (kind, tuple(re.findall(r"`(\w+)`", labels)), about)
    expected = {p.name: ("counter" if p.counter else "gauge", (), p.about) for p in metrics.PLAIN}
    for kind, what in (
        ("counter", metrics.DECISIONS),
        ("histogram", metrics.LATENCY),
        ("gauge", metrics.STATE),
        ("gauge", metrics.BUILD),
    ):
        expected[what.name] = (kind, what.labels, what.about)
    assert rows == expected


def test_what_is_said_is_what_is_listed() -> None:
    """The collector yields every listed metric, even before a line has spoken."""
    pytest.importorskip("prometheus_client", reason="needs metal-edge[metrics]")
    found = {family.name for family in metrics.StationCollector(dict).collect()}
    listed = [*metrics.PLAIN, metrics.DECISIONS, metrics.LATENCY, metrics.STATE, metrics.BUILD]
    assert found == {metrics.PREFIX + what.name for what in listed}


def test_every_number_of_a_heartbeat_is_a_metric() -> None:
    """Each field has a number of its own, which must come out, as it is or in seconds."""
    words = {"session_id", "state", "problems", "t_publish", "decisions", "schema_"}
    numbers = [name for name in HeartbeatPayload.model_fields if name not in words]
    beat = {name: float(number) for number, name in enumerate(numbers, 100)}
    tally = Tally(SystemClock(), 5.0)
    tally.hear("heartbeat", {**beat, "state": "armed", "problems": ["one"]})
    line = tally.snapshot()
    shown = {plain.value(line) for plain in metrics.PLAIN}
    told_otherwise = {"t_publish_ns", "healthy"}  # by heartbeat_age_seconds, and as 0 or 1
    for name in set(numbers) - told_otherwise:
        assert beat[name] in shown or beat[name] * 1e-3 in shown, name
