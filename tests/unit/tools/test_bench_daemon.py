"""What bench-daemon and soak make of their samples: a leak and wrong books must show."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tools.bench_daemon.measure import _books, split
from tools.bench_daemon.rig import Subscriber
from tools.bench_daemon.soak import Sample, sample
from tools.bench_daemon.soak_report import judge

COUNTS = {
    "last_decision_seq": 1000.0,
    "frames_dropped": 5.0,
    "events_dropped": 0.0,
    "decisions_dropped": 0.0,
    "broker restarts": 0.0,
}


def samples(rss: float = 0, threads: float = 0, descriptors: float = 0) -> list[Sample]:
    """A hundred seconds; each figure grows by so much a second."""
    return [
        Sample(i, 100_000 + int(i * rss), 10 + int(i * threads), 20 + int(i * descriptors))
        for i in range(100)
    ]


@pytest.mark.parametrize(
    ("found", "good"),
    [
        (samples(), True),
        (samples(rss=30), True),  # 1.5 % from the second quarter to the last
        (samples(rss=50), False),
        (samples(threads=0.04), False),
        (samples(descriptors=0.04), False),
    ],
    ids=["flat", "within 2 %", "memory", "threads", "descriptors"],
)
def test_growth(found: list[Sample], good: bool) -> None:
    table, reached = judge(found, COUNTS, faults=False)
    assert reached is good
    assert ("| no |" in table) is not good


@pytest.mark.parametrize("lost", [{"events_dropped": 1.0}, {"last_decision_seq": 5.0}])
def test_losses(lost: dict[str, float]) -> None:
    assert not judge(samples(), {**COUNTS, **lost}, faults=False)[1]


def test_a_sample_of_this_process() -> None:
    found = sample(os.getpid(), 0.0)
    read, write = os.pipe()
    try:
        assert sample(os.getpid(), 0.0).descriptors == found.descriptors + 2
    finally:
        os.close(read)
        os.close(write)
    assert found.rss_kib > 1000
    assert found.threads >= 1


def test_inference_is_taken_out() -> None:
    said = {
        "t_exposure_ns": 0,
        "t_publish_ns": 8_000_000,
        "latency_ms": {"infer": 5.0, "post": 1.0},
    }
    added = split([(9_500_000, said), (9_500_000, {**said, "t_exposure_ns": None})])
    assert added.total.tolist() == pytest.approx([4.5])
    assert added.hand_over.tolist() == pytest.approx([2.0])
    assert added.broker.tolist() == pytest.approx([1.5])


@pytest.mark.parametrize(("dropped", "wrong"), [(4, 0), (3, 1)])
def test_books(dropped: int, wrong: int) -> None:
    def decision(seq: int, frame: int | None) -> tuple[int, dict[str, Any]]:
        return 0, {"seq": seq, "frame_id": None if frame is None else f"cam0-{frame}"}

    heard = SimpleNamespace(
        decisions=[decision(1, 10), decision(2, 12), decision(3, None), decision(4, 16)],
        heartbeats=[
            {"last_decision_seq": 1, "frames_dropped": 0},
            {"last_decision_seq": 4, "frames_dropped": dropped},
        ],
    )
    found = _books(cast(Subscriber, heard), np.ones(1), np.ones(1))
    assert (found.offered, found.decided, found.wrong) == (6, 2, wrong)
