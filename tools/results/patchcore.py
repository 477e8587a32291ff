"""A plain PatchCore to compare with (Roth et al., "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022), on the very features and tokens that `metal-features` reconstructs.

Written as an AnomalyModel whose reconstruction of a token is the nearest token of a memory bank,
so that smoothing, score, export and evaluation are the same code for both. Left out of the
paper: the re-weighting of the image score by the neighbours of the nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from metal_edge.models.base import AnomalyModel, ModelConfig
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.models.memory import greedy_coreset


class PatchCoreConfig(ModelConfig):
    """A memory bank over frozen features."""

    kind: Literal["patchcore"] = "patchcore"
    image_size: int = Field(default=256, gt=0)
    blur_sigma: float = Field(default=8.0, gt=0)
    weighting: bool = False
    grid: int = Field(default=16, ge=2, description="tokens per side")
    neighbourhood: int = Field(default=3, ge=1, description="side of the averaged window, tokens")
    coreset: float = Field(default=0.1, gt=0, le=1, description="share of the tokens kept")
    projection: int = Field(default=64, gt=0, description="dimensions the coreset is chosen in")

    @property
    def map_size(self) -> int:
        """The error map has one value per token."""
        return self.grid

    @property
    def features(self) -> MetalFeaturesConfig:
        """Where the tokens come from."""
        return MetalFeaturesConfig(
            image_size=self.image_size,
            grid=self.grid,
            levels=("stride4+stride8+stride16",),
            students=False,
            memory=0,
        )


class PatchCore(AnomalyModel):
    """Target: neighbourhood-averaged features, float32 [B, N, C], N = grid * grid tokens."""

    config: PatchCoreConfig
    bank: Tensor

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__(config)
        self.extractor = MetalFeatures(config.features)
        channels = sum(self.extractor.channels)
        self.register_buffer("bank", torch.zeros(1, channels))

    @property
    def size(self) -> int:
        """Numbers that inference needs: the backbone's weights and the bank."""
        backbone = sum(p.numel() for p in self.extractor.backbone.parameters())
        return backbone + self.bank.numel()

    def load_pretrained(self) -> None:
        """The backbone's ImageNet weights."""
        self.extractor.load_pretrained()

    def precompute(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, N, C], each token averaged with its neighbours."""
        grid, side = self.config.grid, self.config.neighbourhood
        tokens = self.extractor.precompute(images)
        maps = tokens.transpose(1, 2).reshape(-1, tokens.shape[-1], grid, grid)
        # The border averages what there is, as anomalib's and the authors' pooling do not:
        # counting padding zeros would give the border a look of its own.
        maps = F.avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=False)
        return maps.flatten(2).transpose(1, 2)

    def fit(
        self, tokens: Tensor, generator: torch.Generator, on_step: Callable[[int, int], None]
    ) -> None:
        """Fills the memory bank.

        Args:
            tokens: float32 [M, C], all tokens of all training images.
            generator: projection and first choice.
            on_step: called with (tokens chosen, tokens to choose).
        """
        count = max(1, round(self.config.coreset * len(tokens)))
        chosen = greedy_coreset(tokens, count, self.config.projection, generator, on_step)
        self.bank = tokens[chosen].clone()

    def target(self, stored: Tensor) -> Tensor:
        """Tokens as they are."""
        return stored.float()

    def forward(self, target: Tensor) -> Tensor:
        """[B, N, C] -> the bank's nearest token to each, [B, N, C]."""
        # |x - b|^2 without |x|^2, which is the same for every b.
        score = self.bank.square().sum(dim=1) - 2.0 * (target @ self.bank.T)
        return self.bank[score.argmin(dim=-1)]

    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Mean squared distance; nothing here is trained by it."""
        return F.mse_loss(reconstruction, target)

    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Euclidean distance to the nearest token of the bank, [B, grid, grid]."""
        distance = (target - reconstruction).square().sum(dim=-1).sqrt()
        return distance.reshape(-1, self.config.grid, self.config.grid)
