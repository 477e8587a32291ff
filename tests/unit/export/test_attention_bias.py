"""A bias is split into mask and slopes exactly, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.export.attention_bias import FORBIDDEN, Bias, read_bias
from metal_edge.export.masked_attention import grid_distances
from metal_edge.models.attention import MASKED_SCORE
from metal_edge.models.features import allowed_tokens, attention_bias

TYPES = st.sampled_from([np.float32, np.float16])


def test_models_and_graphs_forbid_by_the_same_number() -> None:
    assert FORBIDDEN == MASKED_SCORE
    assert np.float16(FORBIDDEN) == FORBIDDEN


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(("grid", "radius", "heads"), [(5, 0, 8), (8, 1, 3), (9, 2, 8), (4, 1, 1)])
def test_the_models_bias(grid: int, radius: int, heads: int, kind: type) -> None:
    bias = read_bias(attention_bias(grid, radius, heads).numpy().astype(kind))
    assert isinstance(bias, Bias)
    np.testing.assert_array_equal(bias.allowed, allowed_tokens(grid, radius)[None])
    slopes = [2.0 ** (1 - h) if h < heads - 2 else 0.0 for h in range(heads)]
    assert list(bias.slopes or [0.0] * heads) == slopes
    assert bias.columns == (grid if bias.slopes else 0)


@given(
    rows=st.integers(2, 5),
    columns=st.integers(2, 5),
    power=st.integers(-3, 3),
    forbidden=st.sampled_from([FORBIDDEN, -np.inf]),
    kind=TYPES,
    seed=st.integers(0, 2**32 - 1),
)
def test_any_grid_and_mask(
    *, rows: int, columns: int, power: int, forbidden: float, kind: type, seed: int
) -> None:
    tokens = rows * columns
    distance = grid_distances(tokens, columns)
    allowed = np.random.default_rng(seed).random((2, tokens, tokens)) < 0.7
    allowed |= np.abs(distance - 1) < 0.5
    exact = -np.array([2.0**power, 0.0])[:, None, None] * distance
    values = np.where(allowed, exact, forbidden).astype(np.float32).astype(kind)
    bias = read_bias(values)
    assert isinstance(bias, Bias)
    made = -np.array(bias.slopes)[:, None, None] * grid_distances(tokens, bias.columns)
    spread = np.broadcast_to(bias.allowed, values.shape)
    np.testing.assert_array_equal(spread, allowed)
    assert (made.astype(np.float32).astype(kind) == values)[allowed].all()


@given(
    kind=TYPES, head=st.integers(0, 2), query=st.integers(0, 15), ulps=st.sampled_from([-1, 1, 900])
)
def test_one_number_that_is_off_is_enough(kind: type, head: int, query: int, ulps: int) -> None:
    values = attention_bias(4, 0, 3).numpy().astype(kind)
    key = (query + 5) % 16
    at = values[head, query, key]
    values[head, query, key] = at + ulps * np.spacing(at if at else kind(1))
    assert "neither 0 nor -1e4" in str(read_bias(values))


def test_queries_without_keys_and_tokens_without_a_grid() -> None:
    values = np.zeros((1, 3, 5), np.float32)
    assert isinstance(read_bias(values), Bias)
    values[0, 1] = FORBIDDEN
    assert "nothing to look at" in str(read_bias(values))
    values[0, 1] = -1.0
    assert "lie on no common grid" in str(read_bias(values))
