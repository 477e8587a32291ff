"""What is added up of a line, and that it never looks better than it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.observing.tally import BOUNDS_S, Histogram, Tally


class HandClock:
    def __init__(self) -> None:
        self.now_ns = 10**9

    def mono_ns(self) -> int:
        return self.now_ns

    def utc_ns(self) -> int:
        return self.now_ns


def beat(healthy: bool = True) -> dict[str, Any]:
    return {"healthy": healthy, "state": "armed"}


def decision(**changes: Any) -> dict[str, Any]:
    usual = {"verdict": "pass", "reason": "ok", "latency_ms": {"grab": 1.0, "infer": None}}
    return {**usual, "t_exposure_ns": 10**9, "t_publish_ns": 10**9 + 7_000_000, **changes}


def test_silence_is_not_healthy() -> None:
    clock = HandClock()
    tally = Tally(clock, heartbeat_hz=5)
    assert not tally.snapshot().healthy
    tally.hear("heartbeat", beat())
    clock.now_ns += 600_000_000
    assert tally.snapshot().healthy
    clock.now_ns += 1
    late = tally.snapshot()
    assert not late.healthy
    assert late.beat_age_s == pytest.approx(0.6)


def test_what_has_ended_is_offline() -> None:
    tally = Tally(HandClock(), heartbeat_hz=5)
    tally.hear("heartbeat", beat())
    tally.hear("decision", decision())
    tally.end()
    last = tally.snapshot()
    assert (last.healthy, last.state) == (False, "offline")
    assert last.decisions == {("pass", "ok"): 1}


def test_a_line_that_says_it_is_not_healthy_is_not() -> None:
    tally = Tally(HandClock(), heartbeat_hz=5)
    tally.hear("heartbeat", beat(healthy=False))
    assert not tally.snapshot().healthy


@pytest.mark.parametrize(
    ("changes", "total"),
    [({}, 1), ({"t_exposure_ns": None}, 0), ({"t_exposure_ns": 2 * 10**9}, 0)],
    ids=["frame", "no frame", "wall clock set back"],
)
def test_total_needs_both_ends(changes: dict[str, Any], total: int) -> None:
    tally = Tally(HandClock(), heartbeat_hz=5)
    tally.hear("decision", decision(**changes))
    latency = tally.snapshot().latency
    assert sum(latency["total"].counts) == total
    assert (sum(latency["grab"].counts), sum(latency["infer"].counts)) == (1, 0)
    assert latency["total"].sum_s == pytest.approx(0.007 * total)


def test_a_snapshot_stays_as_it_was() -> None:
    tally = Tally(HandClock(), heartbeat_hz=5)
    before = tally.snapshot()
    tally.hear("decision", decision())
    assert before.decisions == {}
    assert sum(before.latency["grab"].counts) == 0


@given(st.lists(st.floats(0, 20)))
def test_each_value_is_in_one_bucket_below_its_bound(values: list[float]) -> None:
    found = Histogram()
    for value in values:
        found.add(value)
    for i, bound in enumerate(BOUNDS_S):
        assert sum(found.counts[: i + 1]) == sum(value <= bound for value in values)
    assert sum(found.counts) == len(values)
