"""A profile's shares: medians of nodes after the warm-up, summed by operator."""

from __future__ import annotations

from typing import Any

import pytest

from tools.bench.profile import Share, shares, table


def event(name: str, operator: str, microseconds: int, cat: str = "Node") -> dict[str, Any]:
    return {"cat": cat, "name": name, "dur": microseconds, "args": {"op_name": operator}}


def test_shares_are_medians_after_the_warm_up_summed_by_operator() -> None:
    events = [event("a_kernel_time", "Conv", 90_000) for _ in range(10)]
    events += [event("a_kernel_time", "Conv", us) for us in (1000, 2000, 50_000)]
    events += [event("b_kernel_time", "Conv", 3000) for _ in range(13)]
    events += [event("c_kernel_time", "Gemm", 15_000) for _ in range(13)]
    events += [event("c_fence_before", "Gemm", 70_000), event("run", "", 99_000, cat="Session")]
    assert shares(events) == [Share("Gemm", 1, 15.0), Share("Conv", 2, pytest.approx(5.0))]


def test_the_table_has_shares_of_the_whole() -> None:
    lines = table([Share("Gemm", 1, 15.0), Share("Conv", 2, 5.0)]).splitlines()
    assert lines[2:] == [
        "| Gemm | 1 | 15.00 | 75.0% |",
        "| Conv | 2 | 5.00 | 25.0% |",
        "| all | 3 | 20.00 | |",
    ]
