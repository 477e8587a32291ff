"""NaN and infinity reach whoever may look at them, and nobody from beyond the tensors."""

from __future__ import annotations

import numpy as np
import pytest
from support.attention_cases import Case, assert_close, make_case

from metal_edge.export.masked_attention import Array, Fill
from tools.kernels.attention import HostLibrary, run_host

KINDS = (np.float16, np.float32)
KEYS = (40, 200)  # short and flash kernels
WILD = (np.nan, np.inf, -np.inf)


def looking(case: Case, key: int) -> Array:
    """bool [heads, N]: who may look at a key."""
    groups, queries, _ = case.spec.mask_shape
    rows = case.spec.allowed[:, :, key]
    return np.broadcast_to(rows, (case.spec.heads, queries)) if groups == 1 else rows


def by_head(case: Case, result: Array) -> Array:
    """[B, N, W] -> [B, heads, N, head_dim]."""
    batch, tokens, width = result.shape
    return result.reshape(batch, tokens, case.spec.heads, width // case.spec.heads).swapaxes(1, 2)


@pytest.mark.parametrize("wild", WILD)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", KEYS)
def test_a_wild_key_reaches_every_row_that_may_look_at_it(
    library: HostLibrary, kind: type, keys: int, wild: float
) -> None:
    for seed, key in enumerate((0, 17, keys - 1)):
        case = make_case(kind, batch=2, heads=2, queries=70, keys=keys, seed=seed)
        case.tensors[1][1, key, 5] = wild  # image 1, head 0
        result = by_head(case, run_host(library, case.tensors, case.spec))
        reached = looking(case, key)[0]
        assert np.isnan(result[1, 0, reached]).all()
        assert np.isfinite(result[0]).all()
        assert np.isfinite(result[1, 1]).all()


@pytest.mark.parametrize("wild", WILD)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", KEYS)
def test_a_wild_value_reaches_its_column_of_every_row_that_may_look_at_it(
    library: HostLibrary, kind: type, keys: int, wild: float
) -> None:
    case = make_case(kind, heads=2, queries=70, keys=keys)
    case.tensors[2][0, 17, 5] = wild
    result = by_head(case, run_host(library, case.tensors, case.spec))
    assert not np.isfinite(result[0, 0, looking(case, 17)[0], 5]).any()
    assert np.isfinite(np.delete(result[0, 0], 5, axis=-1)).all()
    assert np.isfinite(result[0, 1]).all()


@pytest.mark.parametrize("wild", WILD)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", KEYS)
def test_a_wild_query_reaches_its_row_and_no_other(
    library: HostLibrary, kind: type, keys: int, wild: float
) -> None:
    case = make_case(kind, queries=70, keys=keys)
    calm = run_host(library, case.tensors, case.spec)
    for dim in range(2):
        case.tensors[0][0, 33, dim] = wild
        result = run_host(library, case.tensors, case.spec)
        assert np.isnan(result[0, 33]).all()
        assert np.delete(result, 33, axis=1).tobytes() == np.delete(calm, 33, axis=1).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", KEYS)
def test_scores_that_all_are_minus_infinity_are_no_row_of_zeros(
    library: HostLibrary, kind: type, keys: int
) -> None:
    case = make_case(kind, queries=20, keys=keys, allowed=np.ones((20, keys), np.bool_))
    case.tensors[0][...] = 1
    case.tensors[1][...] = -np.inf
    assert np.isnan(run_host(library, case.tensors, case.spec)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", KEYS)
def test_a_row_without_keys_is_zeros_beside_rows_of_nan(
    library: HostLibrary, kind: type, keys: int
) -> None:
    allowed = np.ones((20, keys), np.bool_)
    allowed[7] = False
    case = make_case(kind, queries=20, keys=keys, allowed=allowed)
    case.tensors[0][0, 8] = np.nan
    result = run_host(library, case.tensors, case.spec)
    assert (result[0, 7] == 0).all()
    assert np.isnan(result[0, 8]).all()
    assert np.isfinite(result[0, 9]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", Fill)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (17, 31), (65, 129), (130, 190)])
def test_nothing_comes_from_beyond_the_tensors(
    library: HostLibrary, kind: type, fill: Fill, queries: int, keys: int
) -> None:
    """The slack around every tensor is NaN."""
    case = make_case(
        kind, batch=3, heads=2, queries=queries, keys=keys, head_dim=48, fill=fill, slack=(3, 16)
    )
    assert_close(run_host(library, case.tensors, case.spec, slack=case.slack), case)


def test_flash_does_not_read_forbidden_tiles(library: HostLibrary) -> None:
    """A query tile reads a key tile only if any of its 64 rows may look at any of its 64 keys."""
    tiles = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]], np.bool_)
    allowed = tiles.repeat(64, 0).repeat(64, 1)[:150, :230]
    allowed &= np.random.default_rng(0).random(allowed.shape) < 0.9
    for seed, key_tile in enumerate(range(4)):
        case = make_case(np.float16, queries=150, keys=230, allowed=allowed, seed=seed)
        calm = run_host(library, case.tensors, case.spec)
        for tensor in case.tensors[1:]:
            tensor[:, 64 * key_tile : 64 * key_tile + 64] = np.nan
        result = run_host(library, case.tensors, case.spec)
        for query_tile, row in enumerate(tiles):
            rows = slice(64 * query_tile, 64 * query_tile + 64)
            if row[key_tile]:
                assert np.isnan(result[:, rows]).all()
            else:
                assert result[:, rows].tobytes() == calm[:, rows].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_plain_kernels_do_not_read_forbidden_keys(library: HostLibrary, kind: type) -> None:
    case = make_case(kind, queries=20, keys=70, head_dim=144)
    case.tensors[1][:, 33] = case.tensors[2][:, 33] = np.nan
    result = run_host(library, case.tensors, case.spec)
    reached = looking(case, 33)[0]
    assert np.isnan(result[0, reached]).all()
    assert np.isfinite(result[0, ~reached]).all()
