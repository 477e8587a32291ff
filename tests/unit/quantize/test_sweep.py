"""The choice of INT8 blocks: the budget holds, few blocks are given up, time is bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.errors import DataError
from metal_edge.quantize.sweep import Budget, Effect, Row, choose, try_each

BUDGET = Budget(auroc_loss=0.002)


def additive(costs: dict[str, float]) -> tuple[list[Sequence[str]], object]:
    """A model whose blocks' AUROC losses add up; records what was measured."""
    calls: list[Sequence[str]] = []

    def measure(blocks: Sequence[str]) -> Effect:
        calls.append(tuple(blocks))
        return Effect(0.999, 0.01, 0.0, sum(costs[block] for block in blocks))

    return calls, measure


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=40))
def test_the_fewest_of_the_costliest_blocks_are_given_up(millionths: list[int]) -> None:
    costs = {f"block{i}": cost * 1e-6 for i, cost in enumerate(millionths)}
    calls, measure = additive(costs)
    rows = try_each(dict.fromkeys(costs, 1), measure, lambda: 0.0)  # type: ignore[arg-type]
    tried = len(calls)
    assert [row.block for row in rows] == list(costs)
    if min(costs.values()) > BUDGET.auroc_loss:
        with pytest.raises(DataError, match="no block"):
            choose(rows, measure, BUDGET)  # type: ignore[arg-type]
        return
    choice = choose(rows, measure, BUDGET)  # type: ignore[arg-type]
    assert set(choice.int8) | set(choice.fp32) == set(costs)
    assert not set(choice.int8) & set(choice.fp32)
    assert BUDGET.allows(choice.effect)
    if choice.fp32:  # one fewer would not do
        spared = [*choice.int8, choice.fp32[-1]]
        assert not BUDGET.allows(measure(spared))  # type: ignore[operator]
        worst_int8 = max(costs[block] for block in choice.int8)
        assert min(costs[block] for block in choice.fp32) >= worst_int8 - 1e-12
    assert len(calls) - tried <= 2 * math.log2(len(costs)) + 4


def test_time_that_runs_out_leaves_blocks_untried_and_the_budget_still_holds() -> None:
    costs = {"a": 0.0, "b": 0.0, "c": 0.003, "d": 0.0}
    _, measure = additive(costs)
    now = iter([0.0, 1.0, 2.0, 30.0, 40.0])
    rows = try_each(dict.fromkeys(costs, 2), measure, lambda: next(now), limit_s=10.0)  # type: ignore[arg-type]
    assert [row.effect is None for row in rows] == [False, False, True, True]
    choice = choose(rows, measure, BUDGET)  # type: ignore[arg-type]
    assert BUDGET.allows(choice.effect)
    assert "c" in choice.fp32


@pytest.mark.parametrize(
    ("effect", "allowed"),
    [
        (Effect(0.96, 0.2), False),
        (Effect(0.995, 0.05), True),
        (Effect(0.96, 0.2, 0.001, 0.001), True),
        (Effect(0.99, 0.01, 0.003, 0.0), False),
        (Effect(0.99, 0.01, 0.0, 0.003), False),
        (Effect(0.99, 0.01, -0.5, None), True),
        (Effect(math.nan, 0.01, 0.0, 0.0), False),
        (Effect(0.99, math.nan, 0.0, 0.0), False),
        (Effect(0.99, 0.01, math.nan, 0.0), False),
    ],
)
def test_what_the_budget_allows(effect: Effect, allowed: bool) -> None:
    assert BUDGET.allows(effect) is allowed


def test_a_budget_of_zero_allows_no_loss_but_a_gain() -> None:
    assert Budget(0.0).allows(Effect(0.99, 0.01, -0.001, 0.0))
    assert not Budget(0.0).allows(Effect(0.99, 0.01, 1e-9, 0.0))


def test_a_row_that_was_not_finite_is_valid_json() -> None:
    assert Row("a", 1, Effect(math.nan, math.inf, 0.1, None)).as_dict()["alone"] == {
        "map_correlation": None,
        "score_change": None,
        "image_auroc_loss": 0.1,
        "pixel_auroc_loss": None,
    }
