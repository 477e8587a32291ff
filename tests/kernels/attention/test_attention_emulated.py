"""The kernels' source in the emulation, on problems drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from support.attention_cases import TYPES, Case, assert_close, cases, make_case

from metal_edge.export.masked_attention import Fill
from tools.kernels.attention import HostLibrary, run_host

FIXED = settings(derandomize=True, max_examples=150)
FEW = settings(FIXED, max_examples=25)


def run(library: HostLibrary, case: Case, seed: int = 0) -> np.ndarray:
    return run_host(library, case.tensors, case.spec, seed=seed, slack=case.slack)


@FIXED
@given(case=cases())
def test_any_problem_is_as_close_as_a_plain_implementation(
    library: HostLibrary, case: Case
) -> None:
    assert_close(run(library, case, case.seed), case)


@FEW
@given(case=cases(least_outputs=1))
def test_the_order_of_blocks_warps_and_lanes_changes_no_bit(
    library: HostLibrary, case: Case
) -> None:
    first = run(library, case)
    for seed in (1, 2, 3):
        assert run(library, case, seed).tobytes() == first.tobytes()


@FEW
@given(case=cases(least_outputs=1))
def test_images_do_not_see_each_other(library: HostLibrary, case: Case) -> None:
    together = run(library, case)
    for image, expected in enumerate(together):
        alone = [each[image : image + 1] for each in case.tensors]
        assert run_host(library, alone, case.spec).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("tokens", [20, 150])
def test_tensors_side_by_side_change_no_bit(library: HostLibrary, kind: type, tokens: int) -> None:
    case = make_case(kind, batch=2, heads=3, queries=tokens, keys=tokens, head_dim=48)
    query, key, value = case.tensors
    result = run(library, case)
    for tensors in (
        [query, np.concatenate([key, value], axis=-1)],
        [np.concatenate([query, key, value], axis=-1)],
    ):
        assert run_host(library, tensors, case.spec).tobytes() == result.tobytes()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("tokens", [20, 150])
def test_a_query_of_one_image_serves_all(library: HostLibrary, kind: type, tokens: int) -> None:
    case = make_case(kind, batch=3, heads=2, queries=tokens, keys=tokens, shared_query=True)
    query, key, value = case.tensors
    repeated = [query.repeat(3, axis=0), key, value]
    result = run(library, case)
    assert result.tobytes() == run_host(library, repeated, case.spec).tobytes()
    assert_close(result, case)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("fill", Fill)
def test_the_largest_problem(library: HostLibrary, kind: type, fill: Fill) -> None:
    """N = 4096 walks over both words of a row of tile occupancy."""
    row = np.arange(4096)
    near = np.abs(row[:, None] - row) < 40
    near[100:130, 3900:] = True  # keys of the second word for queries of the first tiles
    few = near[:150]
    case = make_case(kind, queries=150, keys=4096, head_dim=16, allowed=few, fill=fill)
    assert_close(run(library, case), case)


def test_the_stripe_case(library: HostLibrary) -> None:
    for kind in (np.float16, np.float32):
        for seed in range(4):
            case = make_case(
                kind, batch=4, queries=8, keys=8, head_dim=256, allowed=~np.eye(8, dtype=np.bool_),
                seed=seed,
            )  # fmt: skip
            assert_close(run(library, case), case)


@pytest.mark.parametrize("spread", [30.0, 300.0])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("keys", [60, 200])
def test_large_scores(library: HostLibrary, kind: type, keys: int, spread: float) -> None:
    """Scores of thousands and hundreds of thousands: one weight is 1, the others vanish."""
    case = make_case(kind, batch=16, queries=60, keys=keys, spread=spread)
    assert_close(run(library, case), case)


@pytest.mark.parametrize("keys", [1, 33, 128, 300])
@pytest.mark.parametrize("kind", TYPES)
def test_equal_keys_give_the_mean_of_the_allowed_values(
    library: HostLibrary, kind: type, keys: int
) -> None:
    case = make_case(kind, batch=4, queries=70, keys=keys, slack=(1, 16))
    case.tensors[1][...] = case.tensors[1][:, :1]
    assert_close(run(library, case), case)


def test_a_library_says_which_head_dims_it_lacks(library: HostLibrary) -> None:
    case = make_case(np.float16, head_dim=64)
    with pytest.raises(ValueError, match="head_dim 64 is not compiled into this library"):
        run(library, case)
