"""ZeroLeak: masked reconstruction in which nothing of a patch reaches its own reconstruction.

Masking the diagonal of self-attention, as MeTAL does (De Nardin et al. 2022, sec. 3.2.1), hides
nothing: the query, and the residual around it, carry the patch to its own output, and a second
block brings back what the neighbours saw of it. Here content and queries are two streams:

* content c_j is a function of token j alone, made once, before the first block;
* a query h_i starts as the learned position i, knows no content, and gathers from those c_j that
  share no pixel with patch i or its neighbourhood.

By induction over the blocks h_i is a function of allowed tokens only, at any depth. That lasts
as long as nothing mixes tokens in the content stream: no BatchNorm, no normalisation by the
image's own statistics, no embedding of overlapping patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metal_edge.models.attention import MASKED_SCORE
from metal_edge.models.shapes import Shape, coverage


def neighbourhood(grid: int, radius: int) -> NDArray[np.bool_]:
    """bool [N, N], N = grid * grid: is square j within Chebyshev distance `radius` of i?"""
    row, col = np.divmod(np.arange(grid * grid), grid)
    apart = np.maximum(abs(row[:, None] - row), abs(col[:, None] - col))
    return np.asarray(apart <= radius)


def allowed_tokens(grid: int, shapes: Sequence[Shape], radius: int) -> NDArray[np.bool_]:
    """bool [N, M]: may the query of square i look at token j?

    Tokens are those of `shapes` one after the other. A token that contains any square within
    `radius` of i is forbidden: for stripes, those at most `radius` rows (columns) away.
    """
    near = neighbourhood(grid, radius)
    covered = np.concatenate([coverage(grid, shape) for shape in shapes])
    return np.asarray(~(near @ covered.T))


def widest_radius(grid: int, shapes: Sequence[Shape]) -> int:
    """The largest radius that leaves every square a token to look at; -1 if not even 0 does."""
    fits = (r for r in range(grid) if allowed_tokens(grid, shapes, r).any(axis=1).all())
    return max(fits, default=-1)


def mask_bias(allowed: NDArray[np.bool_]) -> Tensor:
    """float32 [N, M]: 0 where looking is allowed, -1e4 where not; see CrossAttentionBlock.

    Raises:
        ValueError: a query without any allowed token; its weights would go to forbidden ones.
    """
    if not allowed.any(axis=1).all():
        raise ValueError("the mask leaves a query nothing to look at")
    return torch.from_numpy(np.where(allowed, 0.0, MASKED_SCORE)).float()


class CrossAttentionBlock(nn.Module):
    """Queries gather from content under a hard mask, then think per token; both residual.

    The mask is added to the scores. FP32's exp is exactly 0 below -104, so a forbidden weight is
    exactly 0 unless its score exceeds the best allowed one by 9896 or more. Scores are products
    of projections of normalised vectors: with width 256, 4 heads and spectral norms s of both
    projections they differ by at most 2*s*s*256/8. That takes an s of 12; trained networks have
    1 to 3.

    Args:
        width: D, of queries and content; divisible by `heads`.
        heads: number of heads.
        mlp_ratio: hidden width of the MLP over D.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.scale = 1.0 / math.sqrt(width // heads)
        self.norm_query = nn.LayerNorm(width)
        self.norm_content = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        hidden = mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, queries: Tensor, content: Tensor, bias: Tensor) -> Tensor:
        """One block.

        Args:
            queries: float32 [B or 1, N, D]. In a first block they are positions, the same for
                all images: with batch 1 the exported graph holds their projection as a constant.
            content: float32 [B, M, D].
            bias: float32 [N, M] or [heads, N, M], added to the scores.

        Returns:
            float32 [B, N, D].
        """
        batch, tokens, width = content.shape
        targets, each = queries.shape[1], width // self.heads
        query = self.query(self.norm_query(queries))
        query = query.reshape(-1, targets, self.heads, each).transpose(1, 2)  # [B, heads, N, D/h]
        pair = self.key_value(self.norm_content(content))
        pair = pair.reshape(batch, tokens, 2, self.heads, each)
        key, value = pair.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, M, D/h]
        score = (query * self.scale) @ key.transpose(-2, -1) + bias  # [B, heads, N, M]
        mixed = (score.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, targets, width)
        queries = queries + self.project(mixed)
        return queries + self.mlp(self.norm_mlp(queries))  # type: ignore[no-any-return]


class Stripes(nn.Module):
    """Content of rows or columns: a map of the contents of the squares in each stripe.

    Shares the squares' embedding, so that a stripe costs no branch of its own width.
    """

    def __init__(self, shape: Shape, grid: int, width: int) -> None:
        super().__init__()
        self.columns = shape is Shape.COLS
        self.mix = nn.Sequential(nn.Linear(grid * width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, squares: Tensor) -> Tensor:
        """[B, g, g, D] -> [B, g, D]."""
        along = squares.transpose(1, 2) if self.columns else squares
        return self.mix(along.flatten(2))  # type: ignore[no-any-return]


class ZeroLeakEncoder(nn.Module):
    """Squares' pixels -> what is known of each square from tokens that it has no part in.

    Args:
        grid: squares per side, g.
        pixels: values per square.
        hidden: hidden width of the squares' embedding.
        width: D, of content and queries.
        shapes: which tokens there are to look at.
        radius: hidden neighbourhood of a square, Chebyshev distance in squares.
        blocks: depth.
        heads, mlp_ratio: see CrossAttentionBlock.

    Raises:
        ValueError: a mask that leaves a square nothing to look at, an indivisible width.
    """

    bias: Tensor

    def __init__(
        self,
        *,
        grid: int,
        pixels: int,
        hidden: int,
        width: int,
        shapes: Sequence[Shape],
        radius: int,
        blocks: int,
        heads: int,
        mlp_ratio: int,
    ) -> None:
        super().__init__()
        allowed = allowed_tokens(grid, shapes, radius)
        self.register_buffer("bias", mask_bias(allowed), persistent=False)  # one for all blocks
        self.embed = nn.Sequential(nn.Linear(pixels, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.cuts = nn.ModuleList(
            nn.Flatten(1, 2) if shape is Shape.SQUARES else Stripes(shape, grid, width)
            for shape in shapes
        )
        squares, tokens = allowed.shape
        self.content_position = nn.Parameter(torch.empty(1, tokens, width))
        self.query_position = nn.Parameter(torch.empty(1, squares, width))
        for position in (self.content_position, self.query_position):
            nn.init.trunc_normal_(position, std=0.02)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, heads, mlp_ratio) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, squares: Tensor) -> Tensor:
        """[B, g, g, pixels] -> [B, g, g, D]."""
        grid = squares.shape[1]
        each = self.embed(squares)  # [B, g, g, D]
        content = torch.cat([cut(each) for cut in self.cuts], dim=1) + self.content_position
        known = self.query_position
        for block in self.blocks:
            known = block(known, content, self.bias)
        return self.norm(known).unflatten(1, (grid, grid))  # type: ignore[no-any-return]
