"""Attentions of this project's models: masks, shapes, and what they need at least."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from metal_edge.export.masked_attention import Array, Fill, Int8Scales, MaskedAttentionSpec
from metal_edge.models import features, zeroleak
from metal_edge.models.shapes import Shape
from tools.kernels.evidence.roofline import Work

TILE = 64  # queries and keys of a tile whose emptiness the kernels know beforehand
_STEP = 4 / 127  # of int8 tensors: four standard deviations


@dataclass(frozen=True, slots=True)
class Problem:
    """One attention, batch 1.

    Attributes:
        name: for tables.
        model: where it is from.
        spec: the operator's attributes, without int8 scales.
        head_dim: columns of a head.
    """

    name: str
    model: str
    spec: MaskedAttentionSpec
    head_dim: int

    @property
    def queries(self) -> int:
        """N."""
        return self.spec.mask_shape[1]

    @property
    def keys(self) -> int:
        """M."""
        return self.spec.mask_shape[2]

    def one_head(self) -> Problem:
        """Its first head alone, where the whole takes long to interpret."""
        spec = replace(
            self.spec,
            heads=1,
            mask_shape=(1, *self.spec.mask_shape[1:]),
            slopes=self.spec.slopes[:1],
        )
        return replace(self, spec=spec)

    def typed(self, precision: str) -> MaskedAttentionSpec:
        """The attributes with int8 scales where `precision` is int8."""
        if precision != "int8":
            return self.spec
        return replace(self.spec, int8=Int8Scales(_STEP, _STEP, _STEP, _STEP / 4))

    def tensors(self, precision: str) -> list[Array]:
        """Normally distributed inputs of a fixed seed, as projections write them."""
        width, rng = self.spec.heads * self.head_dim, np.random.default_rng(5)
        shapes = [(1, self.queries, 3 * width)]
        if self.queries != self.keys:
            shapes = [(1, self.queries, width), (1, self.keys, 2 * width)]
        values = [rng.standard_normal(shape, np.float32) for shape in shapes]
        if precision == "int8":
            return [np.clip(np.rint(v / _STEP), -127, 127).astype(np.int8) for v in values]
        return [v.astype(np.float16) for v in values]


def work(problem: Problem, precision: str) -> Work:
    """What the operator needs however it is computed: kernels/README.md, Numerics.

    With int8 the values meet their weights in float16.
    """
    spec, width = problem.spec, problem.spec.heads * problem.head_dim
    size = 1 if precision == "int8" else 2
    mask_bytes = len(spec.mask) // 2
    allowed = int(spec.allowed.sum()) * (spec.heads // spec.mask_shape[0])
    weighted = spec.heads * problem.queries * problem.keys if spec.fill is Fill.ZERO else allowed
    scores, values = allowed * problem.head_dim, weighted * problem.head_dim
    return Work(
        read=(problem.queries + 2 * problem.keys) * width * size
        + mask_bytes
        + 4 * len(spec.slopes),
        written=problem.queries * width * size,
        fp16_macs=values if precision == "int8" else scores + values,
        int8_macs=scores if precision == "int8" else 0,
        exponentials=weighted,
    )


def tiles(problem: Problem) -> tuple[int, int]:
    """Pairs of query and key tiles that must be read, and all pairs; per head."""
    allowed = problem.spec.allowed.any(axis=0)
    if problem.spec.fill is Fill.ZERO:
        allowed = np.ones_like(allowed)
    rows, columns = (-(-count // TILE) for count in allowed.shape)
    padded = np.zeros((rows * TILE, columns * TILE), bool)
    padded[: allowed.shape[0], : allowed.shape[1]] = allowed
    needed = padded.reshape(rows, TILE, columns, TILE).any(axis=(1, 3))
    return int(needed.sum()), needed.size


def _slopes(heads: int) -> tuple[float, ...]:
    """Those of metal-features: `features.attention_bias`."""
    return tuple(2.0 ** (1 - head) if head < heads - 2 else 0.0 for head in range(heads))


def _make(
    name: str, model: str, allowed: NDArray[np.bool_], heads: int, head_dim: int,
    *, fill: Fill = Fill.EXCLUDE, grid: int = 0,
) -> Problem:  # fmt: skip
    spec = MaskedAttentionSpec.of_mask(
        allowed, heads, fill=fill, columns=grid, slopes=_slopes(heads) if grid else ()
    )
    return Problem(name, model, spec, head_dim)


def problems() -> tuple[Problem, ...]:
    """Those of the benchmark, kernels/bench/cases.cpp."""
    off_64, off_8 = (~np.eye(tokens, dtype=bool) for tokens in (64, 8))
    both = zeroleak.allowed_tokens(8, (Shape.SQUARES, Shape.ROWS), 0)
    coarse, fine = (features.allowed_tokens(grid, 1) for grid in (16, 32))
    window = zeroleak.neighbourhood(32, 4)
    return (
        _make("metal-squares", "metal-paper", off_64, 4, 32, fill=Fill.ZERO),
        _make("metal-stripes", "metal-paper", off_8, 4, 256, fill=Fill.ZERO),
        _make("zeroleak", "MeTAL with the mask zeroleak", both, 4, 64),
        _make("features", "metal-features", coarse, 8, 32, grid=16),
        _make("features-fine", "metal-features-fine", fine, 4, 32, grid=32),
        _make("vit-small", "a ViT-S backbone", np.ones((257, 257), bool), 6, 64),
        _make("window", "none: a window of 9 x 9 tokens", window, 4, 64),
    )
