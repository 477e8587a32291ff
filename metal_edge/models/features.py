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
* **memory**: PatchCore's idea (Roth et al. 2022): distance to the nearest remembered good token,
  so that a rare but good look stays good.

The anomaly map is the geometric mean of the three, each in units of what good parts show.
docs/results.md says what each of them is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from metal_edge.models.attention import MASKED_SCORE
from metal_edge.models.memory import TokenMemory
from metal_edge.models.tokens import TokenConfig, TokenModel
from metal_edge.models.whitening import Moments, Whitening
from metal_edge.models.zeroleak import CrossAttentionBlock, neighbourhood

_CHUNK = 16
_TINY = 1e-6
_MEMORY_SEED = 0
# Of the usual error. One opinion alone, say a token that the memory knows by heart, must not be
# able to silence the others.
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
    students: bool = Field(default=True, description="also predict each depth from its neighbours")
    memory: int = Field(default=3000, ge=0, description="remembered good tokens; 0: none")
    context_depths: int | None = Field(
        default=None, ge=1, description="only so many depths, from the shallowest, in the map"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.context_depths is not None and self.context_depths > len(self.levels):
            raise ValueError(f"context_depths exceeds the {len(self.levels)} depths")
        if not allowed_tokens(self.grid, self.radius).any(axis=1).all():
            raise ValueError(
                f"radius {self.radius} on a {self.grid} x {self.grid} grid leaves a token"
                " nothing to look at"
            )
        return self


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


class MetalFeatures(TokenModel):
    """The reconstruction is wider than the target, [B, N, C + P]: the context's prediction of all
    C channels, then every student's prediction of its depth's channels.
    """

    config: MetalFeaturesConfig
    bias: Tensor
    usual_error: Tensor
    error_weight: Tensor
    balance: Tensor
    memory: TokenMemory | None

    def __init__(self, config: MetalFeaturesConfig) -> None:
        super().__init__(config)
        channels, width, tokens = sum(self.channels), config.width, config.grid**2
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
        if not config.students:
            self.links = []
        self.students = self.make_students()
        self.judged = self.depths[: config.context_depths]
        self.whitenings = nn.ModuleList(
            Whitening(width) for width in self.width_of[: config.context_depths]
        )
        self.memory = TokenMemory(config.memory, channels) if config.memory else None
        kinds = [len(self.judged), len(self.links), 1 if self.memory else 0]
        self.register_buffer("usual_error", torch.ones(sum(kinds)))
        # Every kind weighs the same, however many errors it has.
        weights = [1.0 / (count * sum(map(bool, kinds))) for count in kinds for _ in range(count)]
        self.register_buffer("error_weight", torch.tensor(weights), persistent=False)
        # Every level weighs the same in the memory, however many channels it has.
        balance = [torch.full((count,), count**-0.5) for count in self.channels]
        self.register_buffer("balance", torch.cat(balance), persistent=False)

    def forward(self, target: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C + P]: the context's prediction, then the students'."""
        predictions = [self.context(target)]
        for network, (source, _) in zip(self.students, self.links, strict=True):
            predictions.append(network(target[..., self.depths[source]]))
        return torch.cat(predictions, dim=-1)

    def context(self, target: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C], token i from the tokens its mask allows."""
        content = self.content(target) + self.content_position
        h = self.query_position
        for block in self.blocks:
            h = block(h, content, self.bias)
        return self.out(self.norm(h))  # type: ignore[no-any-return]

    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the context plus 1 - cosine of every student."""
        context, students = self._split(reconstruction, target)
        total = F.mse_loss(context, target)
        for got, wanted in students:
            total = total + (1.0 - F.cosine_similarity(got, wanted, dim=-1)).mean()
        return total

    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Geometric mean of all errors, about 1 on good parts, [B, grid, grid]."""
        errors = self._errors(reconstruction, target) * (1.0 / self.usual_error)
        logs = errors.clamp_min(_FLOOR).log() * self.error_weight
        return logs.sum(dim=-1).exp().reshape(-1, self.config.grid, self.config.grid)

    def fit_errors(self, stored: Tensor) -> None:
        """Memory, whitening and usual size of the errors, from the stored training images."""
        self.eval()
        with torch.inference_mode():
            for depth, whitening in zip(self.judged, self.whitenings, strict=True):
                moments = Moments(depth.stop - depth.start)
                for target in self._targets(stored):
                    moments.add((self.context(target) - target)[..., depth])
                cast(Whitening, whitening).fit(moments)
            if self.memory is not None:
                generator = torch.Generator().manual_seed(_MEMORY_SEED)
                chosen = stored[torch.randperm(len(stored), generator=generator)[:_REMEMBERED]]
                tokens = [self._remembered(x).flatten(0, 1) for x in self._targets(chosen)]
                self.memory.fit(torch.cat(tokens), generator)
            total = torch.zeros_like(self.usual_error)
            for target in self._targets(stored):
                total += self._errors(self(target), target).mean(dim=1).sum(dim=0)
            self.usual_error.copy_((total / len(stored)).clamp_min(_TINY))

    def _targets(self, stored: Tensor) -> Iterator[Tensor]:
        for piece in torch.split(stored, _CHUNK):
            yield self.target(piece)

    def _errors(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """[B, N, errors]: whitened RMS per depth, distance per student, distance to memory."""
        context, students = self._split(reconstruction, target)
        # The subtractions come first after the predictions: what follows them stays FP32 in INT8.
        residual = context - target
        errors = []
        for group, whitening in zip(self.judged, self.whitenings, strict=True):
            errors.append(whitening(residual[..., group]).square().mean(dim=-1).sqrt())
        for got, wanted in students:
            difference = F.normalize(got, dim=-1) - F.normalize(wanted, dim=-1)
            errors.append(difference.square().sum(dim=-1).sqrt())
        if self.memory is not None:
            errors.append(self.memory(self._remembered(target)))
        return torch.stack(errors, dim=-1)

    def _remembered(self, target: Tensor) -> Tensor:
        """[B, N, C] -> what the memory compares: level-balanced, averaged over 3 x 3 tokens."""
        grid = self.config.grid
        maps = (target * self.balance).mT.reshape(-1, target.shape[-1], grid, grid)
        # The border averages what there is: padding zeros would give it a look of its own.
        maps = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
        return maps.flatten(2).mT

    def _split(
        self, reconstruction: Tensor, target: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The context's prediction, and (prediction, wanted) of every student."""
        sizes = [target.shape[-1], *(self.width_of[wanted] for _, wanted in self.links)]
        context, *predicted = torch.split(reconstruction, sizes, dim=-1)
        wanted = [target[..., self.depths[index]] for _, index in self.links]
        return context, list(zip(predicted, wanted, strict=True))
