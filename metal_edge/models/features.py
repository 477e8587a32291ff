"""MeTAL over features: what surrounds a token, what lies above and below it, and what good parts
have shown must explain it.

Not the paper's network but its idea on frozen ImageNet features. Three opinions per token:

* **context**: MeTAL's idea, each token from its surroundings, by a mask that holds at any depth
  (`zeroleak.py`): a query knows its position only and gathers from tokens farther than `radius`
  away. Tokens are features, whose receptive fields overlap: what is hidden is the token and its
  neighbours, not every trace that their pixels left in distant features. Residuals are whitened
  (their covariance on good parts): the likelihood under a Gaussian around the prediction.
* **students**: L2BT's idea (Costanzino et al.) along a chain of backbone depths: per-token MLPs
  predict each depth's features from the next shallower and the next deeper one. They see the
  token itself, at other depths, and catch what surroundings repeat (large stains, bleedings).
* **memory**: PatchCore's idea (Roth et al. 2022), but one memory per depth: distance to the nearest
  remembered good token, so that a rare but good look stays good.

The anomaly map is their geometric mean, each in units of what good parts show; the memory counts
twice. docs/detection.md says what each of them is worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from metal_edge.models.attention import MASKED_SCORE
from metal_edge.models.error_maps import direction_distance
from metal_edge.models.memory import TokenMemory
from metal_edge.models.smoothing import Smoothing
from metal_edge.models.tokens import TokenConfig, TokenModel, coarser, pack
from metal_edge.models.whitening import Moments, Whitening
from metal_edge.models.zeroleak import CrossAttentionBlock, neighbourhood

_CHUNK = 16
_TINY = 1e-6
_MEMORY_SEED = 0
# Of the usual error. One opinion alone, say a token that the memory knows by heart, must not be
# able to silence the others. Added: a maximum might hide NaN, on GPUs it gives the other operand.
_FLOOR = 0.1
_REMEMBERED = 1000  # images at most that the memory chooses its tokens from


class MetalFeaturesConfig(TokenConfig):
    """Architecture of MeTAL over features; stored beside its weights."""

    kind: Literal["metal-features"] = "metal-features"
    blur_sigma: float = Field(default=5.0, gt=0)
    radius: int = Field(default=1, ge=0, description="hidden neighbourhood, Chebyshev, tokens")
    width: int = Field(default=256, gt=0)
    heads: int = Field(default=8, gt=0)
    depth: int = Field(default=2, ge=1)
    mlp_ratio: int = Field(default=2, ge=1)
    context: bool = Field(default=True, description="predict tokens from their surroundings")
    students: bool = Field(default=True, description="also predict each depth from its neighbours")
    memory: int = Field(default=3000, ge=0, description="good tokens remembered per depth; 0: none")
    memory_window: int = Field(
        default=1, ge=1, description="the memory compares means of so many x so many tokens, odd"
    )
    memory_weight: float = Field(
        default=2.0, gt=0, description="of the memories in the map; context and students: 1 each"
    )
    own_grids: bool = Field(
        default=False,
        description="a depth that is coarser than the grid keeps its own tokens; only its errors"
        " are enlarged",
    )
    one_way: bool = Field(
        default=False, description="students only predict the next deeper depth, not back"
    )
    context_depths: int | None = Field(
        default=None, ge=1, description="only so many depths, from the shallowest, in the map"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if not (self.context or (self.students and len(self.levels) > 1)):
            raise ValueError("nothing to train: it needs context, or students and two depths")
        if self.own_grids and self.context:
            raise ValueError("own_grids needs a network without context, which sees one grid")
        if self.memory_window % 2 == 0 or self.memory_window > min(self.depth_grids):
            raise ValueError(f"memory_window {self.memory_window} is not odd and at most the grid")
        if self.context_depths is not None and self.context_depths > len(self.levels):
            raise ValueError(f"context_depths exceeds the {len(self.levels)} depths")
        if not allowed_tokens(self.grid, self.radius).any(axis=1).all():
            raise ValueError(
                f"radius {self.radius} on a {self.grid} x {self.grid} grid leaves a token"
                " nothing to look at"
            )
        return self

    @property
    def depth_grids(self) -> tuple[int, ...]:
        """Tokens per side of each depth."""
        if not self.own_grids:
            return super().depth_grids
        return tuple(min(side, self.grid) for side in self.own_sides())


# What `metal-edge train --preset` changes; docs/results.md measures each.
PRESETS: dict[str, dict[str, Any]] = {
    "products": {},
    # Nothing has a fixed place: what counts is what the surface may look like.
    "textures": {
        "levels": ("stride4+stride8", "stride16", "stride32"),
        "context": False,
        "memory": 6000,
        "memory_window": 3,
        "memory_weight": 16.0,
        "blur_sigma": 12.0,
        # As large as one hot token after the blur: a small defect loses nothing by the mean.
        "score_share": 0.02,
    },
    # Shallow levels alone, which have the detail that a finer grid shows.
    "fine": {
        "levels": ("stride4+stride8",),
        "grid": 32,
        "width": 128,
        "heads": 4,
        "depth": 1,
        "memory": 6000,
        "blur_sigma": 6.0,
    },
    # A few milliseconds on one core: fewer pixels, no stage that no memory looks at, no attention,
    # coarse tokens searched once and not four times; small students are a second opinion.
    "fast": {
        "image_size": 224,
        "grid": 28,
        "levels": ("stride4", "stride8", "stride16-early"),
        "context": False,
        "own_grids": True,
        "one_way": True,
        "hidden": 32,
        "memory": 1200,
        "memory_weight": 8.0,
        "blur_sigma": 4.0,
    },
}


def allowed_tokens(grid: int, radius: int) -> NDArray[np.bool_]:
    """bool [N, N]: may query i look at token j? N = grid * grid, row-major."""
    return np.asarray(~neighbourhood(grid, radius))


def attention_bias(grid: int, radius: int, heads: int) -> Tensor:
    """float32 [heads, N, N]: -1e4 where looking is forbidden, elsewhere a preference for near.

    Each head has its own slope per token of distance, halved from head to head (ALiBi, Press et
    al. 2022, in two dimensions); the last two see all distances alike. Queries that know only
    their position would otherwise spend the first hundred steps finding their neighbours.
    """
    row, col = np.divmod(np.arange(grid * grid), grid)
    distance = np.hypot(row[:, None] - row, col[:, None] - col)
    slopes = np.array([2.0 ** (1 - head) if head < heads - 2 else 0.0 for head in range(heads)])
    bias = -slopes[:, None, None] * distance
    bias[:, ~allowed_tokens(grid, radius)] = MASKED_SCORE
    return torch.from_numpy(bias).float()


def _shares(kinds: list[tuple[float, int]]) -> list[float]:
    """Each error's share of the map, sum 1, where the errors of a kind divide its weight.

    Args:
        kinds: weight, and number of errors, of each.
    """
    total = sum(weight for weight, count in kinds if count)
    return [weight / (total * count) for weight, count in kinds for _ in range(count)]


class Context(nn.Module):
    """Predicts each token from those that its mask allows (`zeroleak.py`)."""

    bias: Tensor

    def __init__(self, config: MetalFeaturesConfig, channels: int) -> None:
        super().__init__()
        width, tokens = config.width, config.grid**2
        self.content = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        self.query_position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.content_position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        bias = attention_bias(config.grid, config.radius, config.heads)
        self.register_buffer("bias", bias, persistent=False)  # one constant for all blocks
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, channels)

    def forward(self, target: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        content = self.content(target) + self.content_position
        h = self.query_position
        for block in self.blocks:
            h = block(h, content, self.bias)
        return self.out(self.norm(h))  # type: ignore[no-any-return]


class MetalFeatures(TokenModel):
    """The reconstruction is wider than the target, [B, N, C + P]: the context's prediction of all
    C channels, then every student's prediction of its depth's channels.

    With grids of their own (`own_grids`), a student works on the coarser one of its two depths;
    the students' predictions lie one after the other, as the depths do in the target.
    """

    config: MetalFeaturesConfig
    usual_error: Tensor
    error_weight: Tensor
    balance: Tensor

    def __init__(self, config: MetalFeaturesConfig) -> None:
        super().__init__(config)
        channels = sum(self.channels)
        self.context = Context(config, channels) if config.context else None
        if not config.students:
            self.links = []
        elif config.one_way:
            self.links = [link for link in self.links if link[0] < link[1]]
        self.students = self.make_students()
        judged = config.context_depths if config.context else 0
        self.judged = self.depths[:judged]
        self.whitenings = nn.ModuleList(Whitening(width) for width in self.width_of[:judged])
        self.memories = nn.ModuleList(
            TokenMemory(config.memory, width) for width in (self.width_of if config.memory else ())
        )
        counts = [len(self.judged), len(self.links), len(self.memories)]
        weights = _shares(list(zip((1.0, 1.0, config.memory_weight), counts, strict=True)))
        self.register_buffer("usual_error", torch.ones(len(weights)))
        self.register_buffer("error_weight", torch.tensor(weights), persistent=False)
        # Every level weighs the same in its depth's memory, however many channels it has.
        balance = [torch.full((count,), count**-0.5) for count in self.channels]
        self.register_buffer("balance", torch.cat(balance), persistent=False)
        sides = sorted({side for side in self.grids if side != config.grid})
        self.enlarge = nn.ModuleDict(
            {str(side): Smoothing(torch.eye(config.grid), side) for side in sides}
        )

    def forward(self, target: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C + P]: the context's prediction, then the students'."""
        predictions = [] if self.context is None else [self.context(target)]
        for network, link in zip(self.students, self.links, strict=True):
            predictions.append(network(self._seen(target, link[0], link)))
        return pack(predictions) if self.mixed else torch.cat(predictions, dim=-1)

    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the context plus 1 - cosine of every student."""
        context, students = self._split(reconstruction, target)
        total = target.new_zeros(()) if context is None else F.mse_loss(context, target)
        for got, wanted in students:
            total = total + (1.0 - F.cosine_similarity(got, wanted, dim=-1)).mean()
        return total

    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Geometric mean of all errors, about 1 on good parts, [B, grid, grid]."""
        errors = self.errors(reconstruction, target) * (1.0 / self.usual_error)
        logs = (errors + _FLOOR).log() * self.error_weight
        return logs.sum(dim=-1).exp().reshape(-1, self.config.grid, self.config.grid)

    def fit_errors(self, stored: Tensor) -> None:
        """Memory, whitening and usual size of the errors, from the stored training images."""
        self.eval()
        with torch.inference_mode():
            if self.context is not None:
                self._whiten(self.context, stored)
            generator = torch.Generator().manual_seed(_MEMORY_SEED)
            chosen = stored[torch.randperm(len(stored), generator=generator)[:_REMEMBERED]]
            for depth, memory in self._memory_of_depth():
                tokens = [list(self._remembered(x))[depth] for x in self._targets(chosen)]
                memory.fit(torch.cat(tokens).flatten(0, 1), generator)
            total = torch.zeros_like(self.usual_error)
            for target in self._targets(stored):
                total += self.errors(self(target), target).mean(dim=1).sum(dim=0)
            self.usual_error.copy_((total / len(stored)).clamp_min(_TINY))

    def _whiten(self, context: Context, stored: Tensor) -> None:
        for depth, whitening in zip(self.judged, self.whitenings, strict=True):
            moments = Moments(depth.stop - depth.start)
            for target in self._targets(stored):
                moments.add((context(target) - target)[..., depth])
            cast(Whitening, whitening).fit(moments)

    def _targets(self, stored: Tensor) -> Iterator[Tensor]:
        for piece in torch.split(stored, _CHUNK):
            yield self.target(piece)

    def errors(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """[B, N, errors]: whitened RMS per depth, distance per student, distance per memory."""
        context, students = self._split(reconstruction, target)
        # The subtractions come first after the predictions: what follows them stays FP32 in INT8.
        errors = []
        if context is not None:
            residual = context - target
            for group, whitening in zip(self.judged, self.whitenings, strict=True):
                errors.append(whitening(residual[..., group]).square().mean(dim=-1).sqrt())
        for got, wanted in students:
            errors.append(self._enlarged(direction_distance(got, wanted)))
        if self.memories:
            for tokens, memory in zip(self._remembered(target), self.memories, strict=True):
                errors.append(self._enlarged(memory(tokens)))
        return torch.stack(errors, dim=-1)

    def _enlarged(self, error: Tensor) -> Tensor:
        """[B, N of a depth] -> [B, N], linear between the middles of tokens."""
        side = math.isqrt(error.shape[1])
        if side == self.config.grid:
            return error
        return self.enlarge[str(side)](error.reshape(-1, side, side)).flatten(1)  # type: ignore[no-any-return]

    def _memory_of_depth(self) -> list[tuple[int, TokenMemory]]:
        """Each depth and its memory; empty without memories."""
        return list(enumerate(cast(TokenMemory, memory) for memory in self.memories))

    def _remembered(self, target: Tensor) -> Iterator[Tensor]:
        """What the memory of each depth compares: level-balanced, averaged over the window."""
        if not self.mixed:
            tokens = self._windowed(target * self.balance, self.config.grid)
            yield from (tokens[..., depth] for depth in self.depths)
            return
        for index, (channels, grid) in enumerate(zip(self.depths, self.grids, strict=True)):
            yield self._windowed(self.tokens_of(target, index) * self.balance[channels], grid)

    def _windowed(self, tokens: Tensor, grid: int) -> Tensor:
        """[B, grid * grid, C] -> means of the window around each token."""
        side = self.config.memory_window
        if side == 1:
            return tokens
        maps = tokens.mT.reshape(-1, tokens.shape[-1], grid, grid)
        # The border averages what there is: padding zeros would give it a look of its own.
        maps = F.avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=False)
        return maps.flatten(2).mT

    def _seen(self, target: Tensor, depth: int, link: tuple[int, int]) -> Tensor:
        """A depth's tokens as a student sees or predicts them: on the coarser grid of the two."""
        common = min(self.grids[index] for index in link)
        return coarser(self.tokens_of(target, depth), self.grids[depth], common)

    def _split(
        self, reconstruction: Tensor, target: Tensor
    ) -> tuple[Tensor | None, list[tuple[Tensor, Tensor]]]:
        """The context's prediction if there is one; (prediction, wanted) of every student."""
        if self.mixed:
            wanted = [self._seen(target, link[1], link) for link in self.links]
            shapes = [tuple(tokens.shape[1:]) for tokens in wanted]
            parts = torch.split(reconstruction, [math.prod(shape) for shape in shapes], dim=1)
            got = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
            return None, list(zip(got, wanted, strict=True))
        sizes = [self.width_of[index] for _, index in self.links]
        first = [target.shape[-1]] if self.context is not None else []
        predicted = list(torch.split(reconstruction, first + sizes, dim=-1))
        context = predicted.pop(0) if first else None
        wanted = [self._seen(target, link[1], link) for link in self.links]
        return context, list(zip(predicted, wanted, strict=True))
