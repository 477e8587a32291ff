"""L2BT: two students that map features of one depth to another and back (Costanzino et al.,
"Learning to Be a Transformer to Pinpoint Anomalies").

A frozen backbone gives tokens at two depths, shallow a and deep b. The forward student predicts
b from a, the backward student a from b, token by token; both learn on good parts only. Where a
part is not good, neither prediction fits, so the two distances are multiplied.

As published: a ViT's patch tokens after blocks 7 and 11 (0-based), students 768-768-768-768 with
GELU, loss (1 - cos) + (1 - cos), distances between L2-normalised features, five box-5 and three
box-7 filters, score = mean of the highest 0.1 % of the pixels (`L2BTConfig.for_vit`). Here also:
on the offline backbone's stages, whose widths differ, with channels standardised on the training
images; `standardise` and `hidden` say which. There the default is a chain of three depths with
students between neighbours, all distances multiplied: on head scans it found clearly more than
any single pair. The filters' borders are mirrored here.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from metal_edge.models.backbone import (
    LEVELS,
    EfficientNetLite0,
    at_grid,
    check_levels,
    load_imagenet_weights,
)
from metal_edge.models.base import AnomalyModel, ModelConfig
from metal_edge.models.smoothing import box_matrix, smoothing_matrix
from metal_edge.models.vit import TimmTokens, check_vit, shape_of, timm_name

LITE0 = "efficientnet-lite0"
VIT_BLOCKS = (7, 11)
TOKEN_STRIDE = 16
DEEPEST_STRIDE = max(stride for _, stride in LEVELS.values())


class L2BTConfig(ModelConfig):
    """Architecture of one L2BT network; stored beside its weights."""

    kind: Literal["l2bt"] = "l2bt"
    image_size: int = Field(default=256, gt=0)
    blur_sigma: float = Field(default=4.7, gt=0, description="used where `boxes` is empty")
    weighting: bool = False
    score_share: float = Field(default=0.001, ge=0, le=1)
    boxes: tuple[int, ...] = Field(
        default=(5, 5, 5, 5, 5, 7, 7, 7),
        description="box filters of the map, odd sides in pixels; empty: Gaussian",
    )
    backbone: str = Field(default=LITE0, description="efficientnet-lite0, or timm:NAME")
    backbone_weights: str | None = Field(
        default=None, description="timm: safetensors file read when training starts"
    )
    levels: tuple[str, ...] = Field(
        default=("stride4+stride8", "stride16-early+stride16", "stride32"),
        description="depths, shallow to deep: the backbone's stages (A+B: side by side), or a"
        " ViT's blocks (0-based)",
    )
    grid: int = Field(default=16, ge=2, description="tokens per side")
    hidden: int = Field(
        default=256, ge=0, description="width inside a student; 0: mean of the two depths'"
    )
    standardise: bool = Field(
        default=True, description="each channel to mean 0, deviation 1 over the training images"
    )

    @model_validator(mode="after")
    def _consistent(self) -> L2BTConfig:
        if len(set(self.levels)) != len(self.levels) or len(self.levels) < 2:
            raise ValueError("L2BT needs at least two different levels, shallow to deep")
        if any(side < 1 or side % 2 == 0 for side in self.boxes):
            raise ValueError("boxes must have odd sides")
        if timm_name(self.backbone) is not None:
            self.blocks()
            if self.image_size % self.grid:
                raise ValueError(
                    f"a {self.image_size} px image is no multiple of the grid {self.grid}"
                )
            return self
        if self.backbone != LITE0:
            raise ValueError(f"backbone {self.backbone!r} is neither {LITE0} nor timm:NAME")
        if self.backbone_weights is not None:
            raise ValueError(f"{LITE0} brings its own weights; only timm:NAME takes a file")
        check_levels(self.stages, self.image_size, self.grid)
        return self

    @classmethod
    def for_vit(cls, backbone: str, **changes: Any) -> L2BTConfig:
        """The published network on a named ViT; its own input size unless `changes` has one.

        Raises:
            UnavailableError: timm is not installed.
            SettingsError: timm has no such ViT, or it not those blocks or that size.
            ValidationError: the levels are not two ascending block numbers.
        """
        name = backbone.removeprefix("timm:")
        shape = shape_of(name)
        size = changes.get("image_size", shape.image_size)
        check_vit(name, size, ())
        published = {
            "image_size": size,
            "grid": max(size // shape.patch, 2),
            "levels": tuple(str(block) for block in VIT_BLOCKS),
            "hidden": 0,
            "standardise": False,
        }
        config = cls.model_validate({"backbone": backbone, **published, **changes})
        check_vit(name, size, config.blocks())
        return config

    @property
    def stages(self) -> tuple[str, ...]:
        """The offline backbone's levels, one by one."""
        return tuple(name for depth in self.levels for name in depth.split("+"))

    def blocks(self) -> tuple[int, ...]:
        """`levels` as a ViT's blocks.

        Raises:
            ValueError: they are not two ascending numbers.
        """
        if not all(level.isascii() and level.isdigit() for level in self.levels):
            raise ValueError(f"levels of a ViT are block numbers, e.g. 7,11, not {self.levels}")
        blocks = tuple(int(level) for level in self.levels)
        if any(deep <= shallow for shallow, deep in pairwise(blocks)):
            raise ValueError("levels must be shallow, then deep")
        return blocks

    @property
    def map_size(self) -> int:
        """The error map has one value per token."""
        return self.grid

    def filtering(self) -> Tensor:
        """Box filters as published, or a Gaussian."""
        if self.boxes:
            return box_matrix(self.image_size, self.boxes)
        return smoothing_matrix(self.image_size, self.blur_sigma)


def student(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers with GELU between them, for each token [..., inputs] on its own."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, outputs),
    )


class L2BT(AnomalyModel):
    """Target: the tokens of all depths side by side, float32 [B, N, C], N = grid * grid.

    The reconstruction holds every student's prediction, in the order of `links`.
    """

    config: L2BTConfig
    channel_scale: Tensor
    channel_shift: Tensor

    def __init__(self, config: L2BTConfig) -> None:
        super().__init__(config)
        name = timm_name(config.backbone)
        self.backbone: EfficientNetLite0 | TimmTokens
        if name is None:
            self.backbone = EfficientNetLite0(config.stages)
            channels = dict(zip(config.stages, self.backbone.channels, strict=True))
            widths = [sum(channels[x] for x in depth.split("+")) for depth in config.levels]
        else:
            self.backbone = TimmTokens(name, config.image_size, config.blocks()).eval()
            self.backbone.requires_grad_(False)
            widths = [self.backbone.width] * len(config.levels)
        ends = accumulate(widths)
        self.depths = [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]
        pairs = list(pairwise(range(len(widths))))
        self.links = pairs + [(deep, shallow) for shallow, deep in pairs]
        self.register_buffer("channel_scale", torch.ones(sum(widths)))
        self.register_buffer("channel_shift", torch.zeros(sum(widths)))
        self.students = nn.ModuleList(
            student(widths[a], config.hidden or (widths[a] + widths[b]) // 2, widths[b])
            for a, b in self.links
        )

    def train(self, mode: bool = True) -> L2BT:
        """The teacher stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def load_pretrained(self) -> None:
        """The backbone's published weights: from the installed package, the hub, or the file."""
        if isinstance(self.backbone, EfficientNetLite0):
            load_imagenet_weights(self.backbone)
            return
        file = self.config.backbone_weights
        self.backbone.load_weights(None if file is None else Path(file))

    def precompute(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> raw features [B, N, C], all depths at the token grid."""
        x = images.permute(0, 3, 1, 2).float() * (2.0 / 255.0) + -1.0
        levels = [at_grid(level, self.config.grid) for level in self.backbone(x)]
        return torch.cat(levels, dim=1).flatten(2).mT

    def fit_inputs(self, stored: Tensor) -> None:
        """Standardises each channel over all tokens of the training images, if so configured."""
        if not self.config.standardise:
            return
        flat = stored.reshape(-1, stored.shape[-1]).double()
        scale = 1.0 / flat.std(dim=0).clamp_min(1e-3)
        self.channel_scale.copy_(scale.float())
        self.channel_shift.copy_((-flat.mean(dim=0) * scale).float())

    def target(self, stored: Tensor) -> Tensor:
        """Raw features -> standardised where so configured, float32 [B, N, C]."""
        return stored.float() * self.channel_scale + self.channel_shift

    def forward(self, target: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, P]: each student's prediction of its depth from its neighbour."""
        parts = [
            network(target[..., self.depths[source]])
            for network, (source, _) in zip(self.students, self.links, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Sum over students of 1 - cos, each a mean over tokens."""
        total = target.new_zeros(())
        for got, wanted in self._pairs(reconstruction, target):
            total = total + (1.0 - F.cosine_similarity(got, wanted, dim=-1)).mean()
        return total

    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Product of the L2 distances between L2-normalised features, [B, grid, grid].

        Of two students, as published; of more, the power of it that keeps the unit.
        """
        product = target.new_ones(())
        for got, wanted in self._pairs(reconstruction, target):
            # First node after the reconstruction in the exported graph: what follows stays FP32.
            difference = F.normalize(got, dim=-1) - F.normalize(wanted, dim=-1)
            product = product * difference.square().sum(dim=-1).sqrt()
        if len(self.links) > 2:
            product = product ** (2.0 / len(self.links))
        return product.reshape(-1, self.config.grid, self.config.grid)

    def _pairs(self, reconstruction: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Prediction and what it should be, per student."""
        wanted = [target[..., self.depths[index]] for _, index in self.links]
        sizes = [part.shape[-1] for part in wanted]
        parts = torch.split(reconstruction, sizes, dim=-1)
        return list(zip(parts, wanted, strict=True))
