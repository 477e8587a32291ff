"""MeTAL over features: what surrounds a token, and what lies above and below it, must explain it.

Not the paper's network but its idea on frozen ImageNet features. Two predictions per token:

* **context**: MeTAL's idea, each token from its surroundings, by a mask that holds at any depth
  (ZeroLeak). Content c_j = f(token j), per-token maps only; a query h_i starts as the learned
  position i, knows no content, and gathers from c_j of the tokens that are farther than `radius`
  from i (Chebyshev distance on the token grid). By induction h_i depends on allowed tokens
  only. Tokens are features, whose receptive fields overlap: what is hidden is the token and its
  neighbours, not every trace that their pixels left in distant features.
* **students**: L2BT's idea (Costanzino et al.) along a chain of backbone depths: per-token MLPs
  predict each depth's features from the next shallower and the next deeper one. They see the
  token itself, at other depths, and catch what surroundings repeat (large stains, bleedings).

The anomaly map is a geometric mean of all their errors, each in units of what good parts show.
Context residuals are whitened first (their covariance on good parts), so that a small deviation
in a quiet direction counts as much as a large one in a busy direction: the likelihood of a token
under a Gaussian around its prediction.
"""

from __future__ import annotations

import math
from itertools import pairwise
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
from metal_edge.models.l2bt import student

_CHUNK = 16
_SHRINKAGE = 0.05  # of a residual covariance towards its mean variance: few images, many channels
_TINY = 1e-6


class MetalFeaturesConfig(ModelConfig):
    """Architecture of MeTAL over features; stored beside its weights."""

    kind: Literal["metal-features"] = "metal-features"
    image_size: int = Field(default=256, gt=0)
    blur_sigma: float = Field(default=5.0, gt=0)
    weighting: bool = False
    score_share: float = Field(default=0.02, ge=0, le=1)
    depths: tuple[tuple[str, ...], ...] = Field(
        default=(("stride4", "stride8"), ("stride16-early", "stride16"), ("stride32",)),
        description="backbone levels, shallow to deep, in the groups that students link",
    )
    grid: int = Field(default=16, ge=2, description="tokens per side")
    radius: int = Field(default=1, ge=0, description="hidden neighbourhood, Chebyshev, tokens")
    width: int = Field(default=256, gt=0)
    heads: int = Field(default=8, gt=0)
    depth: int = Field(default=2, ge=1)
    mlp_ratio: int = Field(default=2, ge=1)
    students: bool = Field(default=True, description="also predict each depth from its neighbours")
    student_hidden: int = Field(default=256, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> MetalFeaturesConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if not self.levels or not all(self.depths):
            raise ValueError("depths must name at least one level in each group")
        for name in self.levels:
            if name not in LEVELS:
                raise ValueError(f"level {name!r} is not one of {', '.join(LEVELS)}")
            side, rest = divmod(self.image_size, LEVELS[name][1])
            if rest or (side % self.grid and self.grid % side):
                raise ValueError(
                    f"level {name} of a {self.image_size} px image does not fit the grid"
                    f" {self.grid}"
                )
        if list(self.levels) != sorted(set(self.levels), key=list(LEVELS).index):
            raise ValueError("depths must name different levels, from shallow to deep")
        if not allowed_tokens(self.grid, self.radius).any(axis=1).all():
            raise ValueError(
                f"radius {self.radius} on a {self.grid} x {self.grid} grid leaves a token"
                " nothing to look at"
            )
        return self

    @property
    def levels(self) -> tuple[str, ...]:
        """All levels, shallow to deep."""
        return tuple(name for group in self.depths for name in group)

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
    """Target: standardised backbone features, float32 [B, N, C], N = grid * grid tokens.

    The reconstruction is wider, [B, N, C + P]: the context's prediction of all C channels, then
    every student's prediction of its depth's channels.
    """

    config: MetalFeaturesConfig
    channel_scale: Tensor
    channel_shift: Tensor
    bias: Tensor
    usual_error: Tensor

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
        self.groups = _groups(
            config.depths, dict(zip(config.levels, self.backbone.channels, strict=True))
        )
        links = list(pairwise(range(len(self.groups)))) if config.students else []
        self.links = links + [(deep, shallow) for shallow, deep in links]
        self.students = nn.ModuleList(
            student(_size(self.groups[a]), config.student_hidden, _size(self.groups[b]))
            for a, b in self.links
        )
        for index, group in enumerate(self.groups):  # residual -> residual @ whiten + offset
            self.register_buffer(f"whiten{index}", torch.eye(_size(group)))
            self.register_buffer(f"offset{index}", torch.zeros(_size(group)))
        self.register_buffer("usual_error", torch.ones(len(self.groups) + len(self.links)))

    def load_pretrained(self) -> None:
        """The backbone's ImageNet weights, from the installed package."""
        load_imagenet_weights(self.backbone)

    def precompute(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> raw features [B, N, C], all levels at the token grid."""
        x = images.permute(0, 3, 1, 2).float() * (2.0 / 255.0) + -1.0
        return torch.cat([self._at_grid(x) for x in self.backbone(x)], dim=1).flatten(2).mT

    def _at_grid(self, level: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, grid, grid]: averaged where finer, interpolated where coarser."""
        grid, side = self.config.grid, level.shape[-1]
        if side < grid:
            return F.interpolate(level, size=(grid, grid), mode="bilinear")
        return level if side == grid else F.avg_pool2d(level, side // grid)

    def fit_inputs(self, stored: Tensor) -> None:
        """Standardises each channel over all tokens of the training images."""
        flat = stored.reshape(-1, stored.shape[-1])
        total = torch.zeros(flat.shape[1], dtype=torch.float64)
        square = torch.zeros_like(total)
        for piece in torch.split(flat, 1 << 14):  # in double precision, but not all of it at once
            total += piece.double().sum(dim=0)
            square += piece.double().square().sum(dim=0)
        mean = total / len(flat)
        scale = 1.0 / (square / len(flat) - mean.square()).clamp_min(0).sqrt().clamp_min(1e-3)
        self.channel_scale.copy_(scale.float())
        self.channel_shift.copy_((-mean * scale).float())

    def target(self, stored: Tensor) -> Tensor:
        """Raw features -> standardised, float32 [B, N, C]."""
        return stored.float() * self.channel_scale + self.channel_shift

    def forward(self, target: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C + P]: the context's prediction, then the students'."""
        predictions = [self.context(target)]
        for network, (source, _) in zip(self.students, self.links, strict=True):
            predictions.append(network(target[..., self.groups[source]]))
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
        """Geometric mean of context and student errors, usual = 1, [B, grid, grid]."""
        errors = self._errors(reconstruction, target) * (1.0 / self.usual_error)
        logs = errors.clamp_min(_TINY).log()
        count = len(self.groups)
        mean = logs[..., :count].mean(dim=-1)
        if self.links:  # both kinds weigh the same, however many there are of each
            mean = 0.5 * (mean + logs[..., count:].mean(dim=-1))
        return mean.exp().reshape(-1, self.config.grid, self.config.grid)

    def fit_errors(self, stored: Tensor) -> None:
        """Whitening and usual size of the errors, from the stored training images."""
        self.eval()
        sums = [_Moments(_size(group)) for group in self.groups]
        with torch.inference_mode():
            for piece in torch.split(stored, _CHUNK):
                target = self.target(piece)
                residual = self.context(target) - target
                for moments, group in zip(sums, self.groups, strict=True):
                    moments.add(residual[..., group])
            for index, moments in enumerate(sums):
                whiten = moments.whitening()
                getattr(self, f"whiten{index}").copy_(whiten)
                getattr(self, f"offset{index}").copy_(-(moments.mean.float() @ whiten))
            total = torch.zeros_like(self.usual_error)
            for piece in torch.split(stored, _CHUNK):
                target = self.target(piece)
                total += self._errors(self(target), target).mean(dim=1).sum(dim=0)
            self.usual_error.copy_((total / len(stored)).clamp_min(_TINY))

    def _errors(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """[B, N, groups + links]: whitened RMS of the context, distances of the students."""
        context, students = self._split(reconstruction, target)
        # The subtractions come first after the predictions: what follows them stays FP32 in INT8.
        residual = context - target
        errors = []
        for index, group in enumerate(self.groups):
            white = residual[..., group] @ getattr(self, f"whiten{index}")
            white = white + getattr(self, f"offset{index}")
            errors.append(white.square().mean(dim=-1).sqrt())
        for got, wanted in students:
            difference = F.normalize(got, dim=-1) - F.normalize(wanted, dim=-1)
            errors.append(difference.square().sum(dim=-1).sqrt())
        return torch.stack(errors, dim=-1)

    def _split(
        self, reconstruction: Tensor, target: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The context's prediction, and (prediction, wanted) of every student."""
        sizes = [target.shape[-1], *(_size(self.groups[wanted]) for _, wanted in self.links)]
        context, *predicted = torch.split(reconstruction, sizes, dim=-1)
        wanted = [target[..., self.groups[index]] for _, index in self.links]
        return context, list(zip(predicted, wanted, strict=True))


class _Moments:
    """Mean and covariance of residuals [..., C], accumulated in double precision."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.product = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, residual: Tensor) -> None:
        flat = residual.reshape(-1, residual.shape[-1]).double()
        self.count += len(flat)
        self.total += flat.sum(dim=0)
        self.product += flat.T @ flat

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    def whitening(self) -> Tensor:
        """float32 [C, C]: residuals times it have (nearly) unit covariance."""
        covariance = self.product / self.count - torch.outer(self.mean, self.mean)
        variance = covariance.diagonal().mean().clamp_min(_TINY)
        covariance += _SHRINKAGE * variance * torch.eye(len(covariance), dtype=torch.float64)
        whitening: Tensor = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        return whitening.float()


def _groups(depths: tuple[tuple[str, ...], ...], channels: dict[str, int]) -> list[slice]:
    """Where each depth's channels lie in a token."""
    groups, start = [], 0
    for names in depths:
        stop = start + sum(channels[name] for name in names)
        groups.append(slice(start, stop))
        start = stop
    return groups


def _size(group: slice) -> int:
    return int(group.stop) - int(group.start)
