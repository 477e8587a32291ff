"""The fused block in the emulation against its definition, in float64."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fused_blocks import (
    blind_to,
    case_of_blind_values,
    case_of_infinite_scores,
    cases,
    changed,
    check_exact,
    random_case,
)

from metal_edge.export.masked_attention_block import plain, reference
from tools.kernels.block import Block, Case

# Emulated on one core.
slow = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
ZEROLEAK = {"heads": 4, "head_dim": 64, "queries": 64, "keys": 72}  # metal's, 8 x 8 squares, rows


@slow
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_any_block_is_as_exact_as_separate_kernels(block: Block, case: Case, seed: int) -> None:
    check_exact(case, block.run_host(case, seed))


@slow
@given(case=cases())
def test_attention_is_exact_without_the_residual_over_it(block: Block, case: Case) -> None:
    case = changed(case, residual=0, b_out=0)
    check_exact(case, block.run_host(case))


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 31, 32, 33, 64, 72, 127, 128])
def test_every_edge_of_a_tile_of_keys(block: Block, keys: int) -> None:
    case = random_case(keys, keys=keys, queries=17)
    check_exact(case, block.run_host(case))


@pytest.mark.parametrize("queries", [1, 8, 15, 16, 17, 32, 33, 65])
def test_every_edge_of_a_tile_of_queries(block: Block, queries: int) -> None:
    case = random_case(queries, queries=queries, batch=2)
    check_exact(case, block.run_host(case))


@pytest.mark.parametrize(
    ("heads", "head_dim"), [(h, d) for d in (16, 32, 64) for h in range(1, 256 // d + 1)]
)
def test_every_width(block: Block, heads: int, head_dim: int) -> None:
    case = random_case(heads, heads=heads, head_dim=head_dim, queries=16, keys=24)
    check_exact(case, block.run_host(case))


def test_the_block_of_the_zeroleak_model(block: Block) -> None:
    case = random_case(1, **ZEROLEAK, batch=2, query_batch=1, residual_batch=1)
    check_exact(case, block.run_host(case))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_on_average_no_less_exact_than_separate_kernels(block: Block, density: float) -> None:
    """Root mean squares of thousands of errors: no luck in them."""
    case = changed(random_case(25, **ZEROLEAK, density=density), residual=0, b_out=0)
    wanted = reference(case.tensors, case.spec)
    errors = (block.run_host(case) - wanted, plain(case.tensors, case.spec) - wanted)
    fused, separate = (np.sqrt(np.square(error).mean()) for error in errors)
    assert fused <= 1.05 * separate


def test_the_largest_block(block: Block) -> None:
    case = random_case(2, heads=4, head_dim=64, queries=33, keys=128)
    check_exact(case, block.run_host(case))


def test_shared_tensors_are_those_of_every_image(block: Block) -> None:
    shared = random_case(3, batch=3, query_batch=1, residual_batch=1)
    three = {n: np.repeat(shared.tensors[n], 3, axis=0) for n in ("query", "residual")}
    repeated = dataclasses.replace(shared, tensors=shared.tensors | three)
    np.testing.assert_array_equal(block.run_host(shared), block.run_host(repeated))


def test_bitwise_equal_in_every_order_of_blocks_warps_and_lanes(block: Block) -> None:
    case = random_case(4, batch=2, heads=4, queries=40, keys=50)
    first = block.run_host(case)
    for seed in range(1, 9):
        np.testing.assert_array_equal(block.run_host(case, seed), first)


def test_a_second_launch_needs_no_cleaning(block: Block) -> None:
    case = random_case(5, heads=3, queries=20)
    arrays = block.memory(case)
    for _ in range(2):
        arrays["out"][:] = np.nan
        assert block.launch(case.problem, arrays) == 0
        check_exact(case, arrays["out"])
        assert not arrays["arrivals"].any()


# ---- LayerNorm


def test_a_constant_row_becomes_beta(block: Block) -> None:
    """Of any size and width: an error of the mean would be divided by sqrt(epsilon)."""
    for heads, value in itertools.product((1, 3, 7), (1.0, -3.1, 2047.0, 60000.0)):
        case = changed(random_case(6, heads=heads), content=value)
        check_exact(case, block.run_host(case))
        beta = np.broadcast_to(case.tensors["beta"], case.tensors["content"].shape)
        same = changed(case, gamma=0, content=beta)  # gamma 0: every row is beta
        np.testing.assert_array_equal(block.run_host(case), block.run_host(same))


@pytest.mark.parametrize("mean", [100.0, 2000.0, 30000.0])
def test_large_means_cancel(block: Block, mean: float) -> None:
    case = random_case(7, keys=40)
    rng = np.random.default_rng(8)
    spread = np.spacing(np.float16(mean)) * rng.integers(-3, 4, case.tensors["content"].shape)
    case = changed(case, content=mean + spread.astype(np.float64))
    check_exact(case, block.run_host(case))


def test_rows_whose_squares_leave_float16(block: Block) -> None:
    case = random_case(9)
    sign = np.sign(case.tensors["content"].astype(np.float32))
    case = changed(case, content=65504 * sign)
    check_exact(case, block.run_host(case))


def test_small_rows_are_held_down_by_epsilon(block: Block) -> None:
    case = random_case(10, epsilon=1e-3)
    case = changed(case, content=case.tensors["content"].astype(np.float32) * 1e-3)
    check_exact(case, block.run_host(case))


# ---- Products in an order of their own: where that could cost exactness


def test_values_that_ignore_what_all_content_shares(block: Block) -> None:
    """The gathered content is large, its projection small: rounding in between would show."""
    case = case_of_blind_values(11)
    check_exact(case, block.run_host(case))


def test_keys_that_ignore_what_differs_most(block: Block) -> None:
    case = random_case(13, heads=4, head_dim=32, queries=16, keys=100, density=1.0)
    rng = np.random.default_rng(14)
    direction = rng.normal(size=128)
    content = case.tensors["content"] + rng.normal(size=(1, 100, 1)) * 10 * direction
    case = changed(case, content=content, residual=0, b_out=0, beta=0)
    seen = (direction - direction.mean()) * case.tensors["gamma"]
    case = changed(case, w_kv=blind_to(case.tensors["w_kv"].astype(float), seen))
    check_exact(case, block.run_host(case))


def test_a_large_key_bias_moves_all_scores_alike(block: Block) -> None:
    case = random_case(15)
    bias = np.concatenate([np.full(32, 100.0), np.zeros(32)])
    case = changed(case, b_kv=bias, residual=0)
    check_exact(case, block.run_host(case))


def test_sharp_attention(block: Block) -> None:
    case = changed(random_case(16, keys=100, scale=8.0), residual=0)
    check_exact(case, block.run_host(case))


# ---- Masks


def test_a_query_without_keys_gets_residual_and_output_bias(block: Block) -> None:
    allowed = np.ones((20, 19), np.bool_)
    allowed[[0, 7, 16, 19]] = False
    case = random_case(17, allowed=allowed)
    got = block.run_host(case)
    check_exact(case, got)
    t = {name: tensor.astype(np.float32) for name, tensor in case.tensors.items()}
    alone = (t["residual"] + t["b_out"]).astype(np.float16)
    np.testing.assert_array_equal(got[:, [0, 7, 16, 19]], alone[:, [0, 7, 16, 19]])


def test_one_key_decides_alone(block: Block) -> None:
    """Whatever its score is, its weight is 1: the query does not matter."""
    allowed = np.eye(20, 19, dtype=np.bool_)
    allowed[19, 3] = True
    case = random_case(18, allowed=allowed)
    got = block.run_host(case)
    check_exact(case, got)
    other = changed(case, query=-3 * case.tensors["query"].astype(np.float32))
    np.testing.assert_array_equal(block.run_host(other), got)


def test_no_leak(block: Block) -> None:
    """Noise in all content that a query may not look at changes no bit of its row."""
    case = random_case(19, batch=2, heads=4, queries=33, keys=72, density=0.7)
    before, allowed = block.run_host(case), case.spec.attention.allowed[0]
    rng = np.random.default_rng(20)
    for query in (0, 15, 16, 32):
        content = case.tensors["content"].copy()
        hidden = ~allowed[query]
        content[:, hidden] = 100 * rng.normal(size=content[:, hidden].shape)
        after = block.run_host(changed(case, content=content))
        np.testing.assert_array_equal(after[:, query], before[:, query])
        assert (after != before).any(), "the noise reached nobody, so this shows nothing"


# ---- NaN and infinity


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["query", "content"])
def test_what_is_not_finite_reaches_every_row_that_may_see_it(
    block: Block, name: str, wild: float
) -> None:
    allowed = np.random.default_rng(21).random((20, 19)) < 0.5
    case = random_case(22, allowed=allowed)
    tensor = case.tensors[name].copy()
    tensor[0, 5, 9] = wild
    got = block.run_host(changed(case, **{name: tensor}))
    reached = allowed[:, 5] if name == "content" else np.arange(20) == 5
    assert np.isnan(got[0, reached]).all()
    if name == "query":  # nobody else looks at a query
        assert np.isfinite(got[0, ~reached]).all()


@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["gamma", "beta", "w_kv", "b_kv", "w_out", "b_out", "residual"])
def test_no_parameter_that_is_not_finite_goes_unseen(block: Block, name: str, wild: float) -> None:
    """In whichever half of keys and values: an infinite key bias makes all scores alike."""
    case = random_case(23, density=1.0)
    for place in (0, case.tensors[name].size - 1):
        tensor = case.tensors[name].copy()
        tensor.flat[place] = wild
        got = block.run_host(changed(case, **{name: tensor}))
        reached = 1 if name == "residual" else 20
        assert (~np.isfinite(got)).any(axis=-1).sum() == reached


def test_a_lone_allowed_key_of_infinite_score_is_not_dropped(block: Block) -> None:
    """Its score is -inf: dropping it would leave a row of zeros that looks healthy."""
    got = block.run_host(case_of_infinite_scores(24))
    assert np.isnan(got).all()
