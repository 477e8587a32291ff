"""Random calls of MaskedAttentionBlock, and how exact a result must be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from metal_edge.export.masked_attention import Fill, Mask, MaskedAttentionSpec
from metal_edge.export.masked_attention_block import (
    INPUTS,
    MaskedAttentionBlockSpec,
    plain,
    reference,
)
from tools.kernels.block import Case


def random_case(
    seed: int,
    *,
    batch: int = 1,
    heads: int = 2,
    head_dim: int = 16,
    queries: int = 20,
    keys: int = 19,
    allowed: Mask | None = None,
    density: float = 0.6,
    query_batch: int | None = None,
    residual_batch: int | None = None,
    epsilon: float = 1e-5,
    **attributes: Any,
) -> Case:
    """Normal tensors, projections that keep their size. `allowed` or a mask of that density."""
    rng, width = np.random.default_rng(seed), heads * head_dim

    def normal(*shape: int, size: float = 1.0) -> NDArray[np.float16]:
        return (rng.normal(size=shape) * size).astype(np.float16)

    tensors = {
        "query": normal(query_batch or batch, queries, width),
        "content": normal(batch, keys, width),
        "residual": normal(residual_batch or batch, queries, width),
        "gamma": normal(width),
        "beta": normal(width),
        "w_kv": normal(2 * width, width, size=width**-0.5),
        "b_kv": normal(2 * width),
        "w_out": normal(width, width, size=width**-0.5),
        "b_out": normal(width),
    }
    assert tuple(tensors) == INPUTS
    mask = rng.random((queries, keys)) < density if allowed is None else allowed
    spec = MaskedAttentionSpec.of_mask(mask, heads, **attributes)
    return Case(tensors, MaskedAttentionBlockSpec(spec, epsilon))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Cases over all that a caller may vary, small enough for an emulation."""
    head_dim = draw(st.sampled_from((16, 32, 64)))
    heads = draw(st.integers(1, min(4, 256 // head_dim)))
    batch = draw(st.integers(1, 2))
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 128))
    slopes, columns = (), 0
    if draw(st.booleans()):
        queries = keys = min(queries, 40)
        slopes = tuple(2.0 ** (1 - head) for head in range(heads))
        columns = draw(st.integers(1, 8))
    seed = draw(st.integers(0, 2**32 - 1))
    groups = heads if draw(st.booleans()) else 1
    density = draw(st.sampled_from((0.0, 0.05, 0.5, 1.0)))
    allowed = np.random.default_rng(seed + 1).random((groups, queries, keys)) < density
    return random_case(
        seed,
        batch=batch,
        heads=heads,
        head_dim=head_dim,
        queries=queries,
        keys=keys,
        allowed=allowed,
        query_batch=draw(st.sampled_from((1, batch))),
        residual_batch=draw(st.sampled_from((1, batch))),
        scale=draw(st.sampled_from((None, 0.5, -0.25))),
        fill=draw(st.sampled_from(tuple(Fill))),
        slopes=slopes,
        columns=columns,
    )


def changed(case: Case, **tensors: Any) -> Case:
    """The case with other tensors, given as arrays or numbers."""
    new = {
        name: np.broadcast_to(np.asarray(value, np.float16), case.tensors[name].shape).copy()
        for name, value in tensors.items()
    }
    return dataclasses.replace(case, tensors=case.tensors | new)


def case_of_blind_values(seed: int) -> Case:
    """All content has a large part in common, which the values' projection ignores."""
    case = random_case(seed, heads=4, head_dim=32, queries=16, keys=100, density=1.0)
    shared = np.random.default_rng(seed + 1).normal(size=128)
    case = changed(case, content=case.tensors["content"] + 10 * shared, beta=0, b_kv=0)
    seen = (shared - shared.mean()) * case.tensors["gamma"]
    blind = blind_to(case.tensors["w_kv"].astype(np.float64), seen)
    return changed(case, w_kv=blind, residual=0, b_out=0)


def case_of_infinite_scores(seed: int) -> Case:
    """Every query has one key, whose score is -inf."""
    case = random_case(seed, heads=1, queries=19, allowed=np.eye(19, dtype=np.bool_))
    sign = np.where(np.arange(16) < 8, 1.0, -1.0)
    keys = np.outer(np.ones(16), 60000 * sign)
    w_kv = np.concatenate([keys, case.tensors["w_kv"][16:]])
    return changed(case, content=sign, w_kv=w_kv, query=-30000, gamma=1, beta=0)


def blind_to(matrix: NDArray[np.float64], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix without what it makes of this direction."""
    unit = direction / np.linalg.norm(direction)
    return matrix - np.outer(matrix @ unit, unit)


def check_exact(case: Case, got: NDArray[np.float16], factor: float = 2.0) -> None:
    """At most `factor` times as far from the float64 result as separate kernels are, at worst.

    A plain implementation may be lucky where there are few elements: half a unit in the last
    place of the largest result, what rounding alone costs, is always granted.
    """
    wanted = reference(case.tensors, case.spec)
    usual = plain(case.tensors, case.spec)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(usual))
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(wanted) & np.isfinite(usual)
    if not finite.any():
        return
    rounding = float(np.spacing(np.abs(wanted[finite]).max().astype(np.float16))) / 2
    granted = max(float(np.abs(usual - wanted)[finite].max()), rounding)
    error = float(np.abs(got - wanted)[finite].max())
    assert error <= factor * granted, f"off by {error:.3g}, separate kernels by {granted:.3g}"
