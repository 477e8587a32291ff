"""MeTAL over features: masked reconstruction of frozen backbone features, without a leak.

Not the paper's network but its idea (each patch explained by its surroundings only) on
ImageNet features, with a mask that holds at any depth. Content and queries are two streams:

* content c_j = f(token j), per-token maps only;
* a query h_i starts as the learned position i, knows no content, and gathers from c_j of the
  tokens that are farther than `radius` from i (Chebyshev distance on the token grid).

By induction h_i depends on allowed tokens only, whatever the depth. Tokens are features, whose
receptive fields overlap: what is hidden is the token and its neighbours, not every trace that
their pixels left in distant features.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from metal_edge.models.attention import MASKED_SCORE
from metal_edge.models.backbone import LEVELS, EfficientNetLite0, load_imagenet_weights
from metal_edge.models.base import AnomalyModel, ModelConfig


class MetalFeaturesConfig(ModelConfig):
    """Architecture of MeTAL over features; stored beside its weights."""

    kind: Literal["metal-features"] = "metal-features"
    image_size: int = Field(default=256, gt=0)
    blur_sigma: float = Field(default=8.0, gt=0)
    weighting: bool = False
    levels: tuple[str, ...] = ("stride4", "stride8", "stride16")
    grid: int = Field(default=16, ge=2, description="tokens per side")
    radius: int = Field(default=1, ge=0, description="hidden neighbourhood, Chebyshev, tokens")
    width: int = Field(default=256, gt=0)
    heads: int = Field(default=8, gt=0)
    depth: int = Field(default=2, ge=1)
    mlp_ratio: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> MetalFeaturesConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        for name in self.levels:
            if name not in LEVELS:
                raise ValueError(f"level {name!r} is not one of {', '.join(LEVELS)}")
            if self.image_size % (LEVELS[name][1] * self.grid):
                raise ValueError(
                    f"level {name} of a {self.image_size} px image is no multiple of the grid"
                    f" {self.grid}"
                )
        if not allowed_tokens(self.grid, self.radius).any(axis=1).all():
            raise ValueError(
                f"radius {self.radius} on a {self.grid} x {self.grid} grid leaves a token"
                " nothing to look at"
            )
        return self

    @property
    def map_size(self) -> int:
        """The error map has one value per token."""
        return self.grid


def allowed_tokens(grid: int, radius: int) -> NDArray[np.bool_]:
    """bool [N, N]: may query i look at token j? N = grid * grid, row-major."""
    row, col = np.divmod(np.arange(grid * grid), grid)
    apart = np.maximum(abs(row[:, None] - row), abs(col[:, None] - col))
    return np.asarray(apart > radius)


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


class CrossAttentionBlock(nn.Module):
    """Queries gather from content under a hard mask, then think per token; both residual."""

    def __init__(self, config: MetalFeaturesConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.scale = 1.0 / math.sqrt(width // config.heads)
        self.norm_query = nn.LayerNorm(width)
        self.norm_content = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        hidden = config.mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, h: Tensor, content: Tensor, bias: Tensor) -> Tensor:
        """h [B or 1, N, D], content [B, N, D], bias [heads, N, N] -> [B, N, D].

        A first block gets h with batch 1 (positions only): its queries become a constant.
        """
        batch, tokens, width = content.shape
        split = (tokens, self.heads, width // self.heads)
        query = self.query(self.norm_query(h)).reshape(-1, *split).transpose(1, 2)
        pair = self.key_value(self.norm_content(content)).reshape(batch, tokens, 2, *split[1:])
        key, value = pair.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, D/heads]
        score = (query * self.scale) @ key.transpose(-2, -1) + bias  # [B, heads, N, N]
        mixed = (score.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, tokens, width)
        h = h + self.project(mixed)
        return h + self.mlp(self.norm_mlp(h))  # type: ignore[no-any-return]


class MetalFeatures(AnomalyModel):
    """Target: standardised backbone features, float32 [B, N, C], N = grid * grid tokens."""

    config: MetalFeaturesConfig
    channel_scale: Tensor
    channel_shift: Tensor
    bias: Tensor

    def __init__(self, config: MetalFeaturesConfig) -> None:
        super().__init__(config)
        self.backbone = EfficientNetLite0(config.levels)
        channels, width, tokens = sum(self.backbone.channels), config.width, config.grid**2
        self.register_buffer("channel_scale", torch.ones(channels))
        self.register_buffer("channel_shift", torch.zeros(channels))
        self.content = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        self.query_position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.content_position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(CrossAttentionBlock(config) for _ in range(config.depth))
        bias = attention_bias(config.grid, config.radius, config.heads)
        self.register_buffer("bias", bias, persistent=False)  # one constant for all blocks
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, channels)

    def load_pretrained(self) -> None:
        """The backbone's ImageNet weights, from the installed package."""
        load_imagenet_weights(self.backbone)

    def precompute(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> raw features [B, N, C], all levels at the token grid."""
        x = images.permute(0, 3, 1, 2).float() * (2.0 / 255.0) + -1.0
        pooled = []
        for level in self.backbone(x):
            step = level.shape[-1] // self.config.grid
            pooled.append(F.avg_pool2d(level, step) if step > 1 else level)
        return torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)

    def fit_inputs(self, stored: Tensor) -> None:
        """Standardises each channel over all tokens of the training images."""
        flat = stored.reshape(-1, stored.shape[-1]).double()
        scale = 1.0 / flat.std(dim=0).clamp_min(1e-3)
        self.channel_scale.copy_(scale.float())
        self.channel_shift.copy_((-flat.mean(dim=0) * scale).float())

    def target(self, stored: Tensor) -> Tensor:
        """Raw features -> standardised, float32 [B, N, C]."""
        return stored.float() * self.channel_scale + self.channel_shift

    def forward(self, target: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C], token i from the tokens its mask allows."""
        content = self.content(target) + self.content_position
        h = self.query_position
        for block in self.blocks:
            h = block(h, content, self.bias)
        return self.out(self.norm(h))  # type: ignore[no-any-return]

    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error over standardised channels."""
        return F.mse_loss(reconstruction, target)

    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error per token, [B, grid, grid]."""
        error = (reconstruction - target).square().mean(dim=-1)
        return error.reshape(-1, self.config.grid, self.config.grid)
