"""Problems for the masked-attention kernels, drawn at random, and how results are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from metal_edge.export.masked_attention import (
    Array,
    Fill,
    Int8Scales,
    Mask,
    MaskedAttentionSpec,
    plain,
    reference,
)

HEAD_DIMS = (16, 32, 48, 128)  # an odd and an even number of 16s, and both ways to split a tile
TYPES = (np.float16, np.int8, np.float32)
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 193)
# A maximum over few outputs is chance: small problems get more images.
LEAST_OUTPUTS = 4096


@dataclass(frozen=True)
class Case:
    """One call of the operator; `slack` and `seed` as for `run_host`."""

    tensors: list[Array]
    spec: MaskedAttentionSpec
    slack: tuple[int, int] = (0, 0)
    seed: int = 0

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For hypothesis, which would print every array."""
        spec, shapes = self.spec, [each.shape for each in self.tensors]
        printer.text(
            f"Case({self.tensors[0].dtype} {shapes}, heads {spec.heads}, mask {spec.mask_shape}, "
            f"{spec.fill}, scale {spec.scale}, slopes {spec.slopes}, columns {spec.columns}, "
            f"slack {self.slack}, seed {self.seed})"
        )


def make_case(
    kind: Any,
    *,
    batch: int = 1,
    heads: int = 1,
    queries: int = 16,
    keys: int = 16,
    head_dim: int = 32,
    allowed: Mask | None = None,
    inputs: int = 3,
    shared_query: bool = False,
    spread: float = 1.0,
    out_scale: float = 0.0101,
    slack: tuple[int, int] = (0, 0),
    seed: int = 0,
    **others: Any,
) -> Case:
    """Normally distributed tensors, `spread` wide; int8: steps of 1/40.

    Args:
        kind: the tensors' dtype.
        batch, heads, queries, keys, head_dim: sizes.
        allowed: bool [N, M] or [G, N, M]; None: half of it, at random.
        inputs: one, two or three tensors.
        shared_query: its batch is 1.
        spread: standard deviation of queries and keys; values have 1.
        out_scale: of int8.
        slack, seed: as for `run_host`; the seed is also the tensors'.
        others: of the spec.
    """
    random = np.random.default_rng(seed)
    width = heads * head_dim
    if allowed is None:
        allowed = random.random((queries, keys)) < 0.5

    def normal(images: int, tokens: int, deviation: float) -> Array:
        values = deviation * random.standard_normal((images, tokens, width))
        if kind == np.int8:
            return np.clip(np.rint(values * 40), -128, 127).astype(np.int8)
        return np.clip(values, -6e4, 6e4).astype(kind)

    q = normal(1 if shared_query else batch, queries, spread)
    k, v = normal(batch, keys, spread), normal(batch, keys, 1.0)
    if inputs == 1:
        tensors = [np.concatenate([q, k, v], axis=-1)]
    elif inputs == 2:
        tensors = [q, np.concatenate([k, v], axis=-1)]
    else:
        tensors = [q, k, v]
    if kind == np.int8:
        others["int8"] = Int8Scales(1 / 40, 1 / 40, 1 / 40, out_scale)
    spec = MaskedAttentionSpec.of_mask(allowed, heads, **others)
    return Case(tensors, spec, slack, seed)


@st.composite
def cases(draw: st.DrawFn, largest: int = 200, least_outputs: int = LEAST_OUTPUTS) -> Case:
    """Any supported problem with up to `largest` tokens."""
    kind = draw(st.sampled_from(TYPES))
    tokens = st.one_of(
        st.sampled_from([edge for edge in EDGES if edge <= largest]), st.integers(1, largest)
    )
    queries = draw(tokens)
    keys = draw(st.one_of(st.just(queries), tokens))
    heads = draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from(HEAD_DIMS))
    if kind != np.int8:
        head_dim = draw(st.sampled_from([head_dim, head_dim, head_dim, 144, 256]))
    batch = draw(st.integers(1, 2))
    batch = max(batch, -(-least_outputs // (queries * heads * head_dim)))
    others: dict[str, Any] = {"fill": draw(st.sampled_from(Fill))}
    if queries == keys and draw(st.booleans()):
        slope = st.floats(0, 2, width=32)
        others["slopes"] = tuple(draw(st.lists(slope, min_size=heads, max_size=heads)))
        others["columns"] = draw(st.integers(1, queries))
    others["scale"] = draw(st.sampled_from([None, None, None, 0.0, -0.3, 1.0]))
    return make_case(
        kind,
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        allowed=draw(masks(heads, queries, keys)),
        inputs=draw(st.sampled_from([1, 2, 3] if queries == keys else [2, 3])),
        spread=draw(st.sampled_from([1.0, 1.0, 1.0, 0.0, 8.0])),
        # no simple ratio to the values' step: means of equal scores would lie between two steps
        out_scale=draw(st.sampled_from([0.0101, 0.00103, 0.0397])),
        slack=draw(st.sampled_from([(0, 0), (1, 0), (2, 16)])),
        seed=draw(st.integers(0, 2**16)),
        **others,
    )


@st.composite
def masks(draw: st.DrawFn, heads: int, queries: int, keys: int) -> Mask:
    """bool [G, N, M] of the kinds that models have, or without any order."""
    groups = draw(st.sampled_from([1, heads]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    row, column = np.arange(queries)[:, None], np.arange(keys)
    kind = draw(
        st.sampled_from(["random", "diagonal", "radius", "one key", "blocks", "all", "none"])
    )
    shape = (groups, queries, keys)
    if kind == "random":
        return random.random(shape) < draw(st.sampled_from([0.02, 0.5, 0.98]))
    if kind == "diagonal":
        return np.broadcast_to(row != column, shape)
    if kind == "radius":
        reach = draw(st.integers(0, 70))
        return np.broadcast_to(np.abs(row - column) <= reach, shape)
    if kind == "one key":
        return np.arange(keys) == random.integers(0, keys, (groups, queries, 1))
    if kind == "blocks":  # tiles that are forbidden as a whole, and queries without any key
        coarse = random.random((groups, -(-queries // 16), -(-keys // 64))) < 0.5
        return coarse.repeat(16, 1).repeat(64, 2)[:, :queries, :keys]
    return np.full(shape, kind == "all")


def assert_close(result: Array, case: Case) -> None:
    """The kernels' tolerance, kernels/README.md: at most twice a plain implementation's error.

    Float: the largest error against float64, besides the rounding of the result itself. int8: one
    step off at most, and not more than twice as many values as the plain one, or five, by chance.
    """
    expected = reference(case.tensors, case.spec)
    simple = plain(case.tensors, case.spec)
    if case.spec.int8 is not None:
        steps = np.clip(np.rint(expected / case.spec.int8.out), -128, 127)
        off = np.abs(result - steps)
        most = 2 * np.count_nonzero(simple != steps) + 5
        assert off.max() <= 1, f"{off.max()} steps off at {np.argwhere(off > 1)[:3]}"
        assert np.count_nonzero(off) <= most, f"{np.count_nonzero(off)} values off, limit {most}"
        return
    error = np.abs(result.astype(np.float64) - expected)
    rounding = np.abs(expected) * np.finfo(result.dtype).eps / 2
    allowed = 2 * np.abs(simple.astype(np.float64) - expected).max() + rounding
    assert not np.isnan(error).any(), f"NaN at {np.argwhere(np.isnan(error))[:3]}"
    worst = np.unravel_index((error - allowed).argmax(), error.shape)
    assert error[worst] <= allowed[worst], (
        f"error {error[worst]:.3g} at {worst}, allowed {allowed[worst]:.3g}"
    )
