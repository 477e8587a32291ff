"""What models over a frozen backbone share: tokens of several depths, side by side on one grid.

The backbone is the offline EfficientNet-Lite0, whose stages are the levels, or a ViT out of timm,
whose blocks are. A depth is one level or several ("stride4+stride8"); depths go from shallow to
deep.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

import torch
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
from metal_edge.models.vit import TimmTokens, check_vit, shape_of, timm_name

LITE0 = "efficientnet-lite0"
VIT_BLOCKS = (7, 11)
GRID = 16
TOKEN_STRIDE = 16  # of the default grid: one token for 16 x 16 pixels
DEEPEST_STRIDE = 32
_SLICE = 1 << 14


class TokenConfig(ModelConfig):
    """Where the tokens come from."""

    image_size: int = Field(default=256, gt=0)
    weighting: bool = False
    backbone: str = Field(default=LITE0, description="efficientnet-lite0, or timm:NAME")
    backbone_weights: str | None = Field(
        default=None, description="timm: safetensors file read when training starts"
    )
    levels: tuple[str, ...] = Field(
        default=("stride4+stride8", "stride16-early+stride16", "stride32"),
        description="depths, shallow to deep: the backbone's stages (A+B: side by side), or a"
        " ViT's blocks (0-based)",
    )
    grid: int = Field(default=GRID, ge=2, description="tokens per side")
    hidden: int = Field(
        default=256, ge=0, description="width inside a student; 0: mean of the two depths'"
    )
    standardise: bool = Field(
        default=True, description="each channel to mean 0, deviation 1 over the training images"
    )

    @model_validator(mode="after")
    def _tokens_exist(self) -> Self:
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError("levels must name different ones, at least one")
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
    def for_vit(cls, backbone: str, **changes: Any) -> Self:
        """This model on a named ViT; the ViT's own input size unless `changes` has one.

        Raises:
            UnavailableError: timm is not installed.
            SettingsError: timm has no such ViT, or it not those blocks or that size.
            ValidationError: the levels are not ascending block numbers.
        """
        name = backbone.removeprefix("timm:")
        shape = shape_of(name)
        size = changes.get("image_size", shape.image_size)
        check_vit(name, size, ())
        given = {
            "image_size": size,
            "grid": max(size // shape.patch, 2),
            "levels": tuple(str(block) for block in VIT_BLOCKS),
        }
        config = cls.model_validate({"backbone": backbone, **given, **changes})
        check_vit(name, size, config.blocks())
        return config

    @property
    def stages(self) -> tuple[str, ...]:
        """The offline backbone's levels, one by one."""
        return tuple(name for depth in self.levels for name in depth.split("+"))

    def blocks(self) -> tuple[int, ...]:
        """`levels` as a ViT's blocks.

        Raises:
            ValueError: they are not ascending numbers.
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

    @property
    def depth_grids(self) -> tuple[int, ...]:
        """Tokens per side of each depth."""
        return (self.grid,) * len(self.levels)

    def own_sides(self) -> tuple[int, ...]:
        """Values per side that the backbone gives for each depth, of its finest level."""
        name = timm_name(self.backbone)
        if name is not None:
            return (self.image_size // shape_of(name).patch,) * len(self.levels)
        return tuple(self.image_size // LEVELS[d.split("+")[0]][1] for d in self.levels)


class TokenModel(AnomalyModel):
    """Target: the tokens of all depths side by side, float32 [B, N, C], N = grid * grid.

    Where depths have grids of their own, their tokens lie one depth after the other instead,
    float32 [B, sum of N C]; `tokens_of` reads both.

    Attributes:
        channels: of each level, shallow to deep.
        depths: where each depth's channels lie in a token.
        grids: of each depth, tokens per side.
        mixed: whether they differ.
        links: (from, to) of the students between neighbouring depths, forward ones first.
    """

    config: TokenConfig
    channel_scale: Tensor
    channel_shift: Tensor

    def __init__(self, config: TokenConfig) -> None:
        super().__init__(config)
        name = timm_name(config.backbone)
        self.backbone: EfficientNetLite0 | TimmTokens
        if name is None:
            self.backbone = EfficientNetLite0(config.stages)
            self.channels = self.backbone.channels
            of = dict(zip(config.stages, self.channels, strict=True))
            widths = [sum(of[stage] for stage in depth.split("+")) for depth in config.levels]
        else:
            self.backbone = TimmTokens(name, config.image_size, config.blocks()).eval()
            self.backbone.requires_grad_(False)
            widths = [self.backbone.width] * len(config.levels)
            self.channels = tuple(widths)
        ends = accumulate(widths)
        self.depths = [slice(end - width, end) for width, end in zip(widths, ends, strict=True)]
        self.width_of = widths
        self.grids = config.depth_grids
        self.mixed = len({config.grid, *self.grids}) > 1
        ends = accumulate(side**2 * width for side, width in zip(self.grids, widths, strict=True))
        self._ends = list(ends)
        pairs = list(pairwise(range(len(widths))))
        self.links = pairs + [(deep, shallow) for shallow, deep in pairs]
        self.register_buffer("channel_scale", torch.ones(sum(widths)))
        self.register_buffer("channel_shift", torch.zeros(sum(widths)))

    def train(self, mode: bool = True) -> Self:
        """The backbone stays in eval mode."""
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
        """uint8 [B, S, S, 3] -> raw features, laid out as the target."""
        x = images.float().permute(0, 3, 1, 2) * (2.0 / 255.0) + -1.0
        if not self.mixed:
            levels = [at_grid(level, self.config.grid) for level in self.backbone(x)]
            return torch.cat(levels, dim=1).flatten(2).mT
        levels, parts = list(self.backbone(x)), []
        for depth, grid in zip(self.config.levels, self.grids, strict=True):
            own = [at_grid(levels.pop(0), grid) for _ in depth.split("+")]
            parts.append(torch.cat(own, dim=1).flatten(2).mT)
        return pack(parts)

    def tokens_of(self, laid: Tensor, depth: int) -> Tensor:
        """One depth's tokens, [B, N of the depth, C of the depth]."""
        if not self.mixed:
            return laid[..., self.depths[depth]]
        count = self.grids[depth] ** 2
        end, width = self._ends[depth], self.width_of[depth]
        return laid[:, end - count * width : end].reshape(-1, count, width)

    def fit_inputs(self, stored: Tensor) -> None:
        """Standardises each channel over all tokens of the training images, if so configured."""
        if not self.config.standardise:
            return
        if not self.mixed:
            self._standardise(slice(None), stored)
            return
        for index, depth in enumerate(self.depths):
            self._standardise(depth, self.tokens_of(stored, index))

    def _standardise(self, channels: slice, tokens: Tensor) -> None:
        flat = tokens.reshape(-1, tokens.shape[-1])
        total = torch.zeros(flat.shape[1], dtype=torch.float64)
        square = torch.zeros_like(total)
        for piece in torch.split(flat, _SLICE):  # in double precision, but not all of it at once
            total += piece.double().sum(dim=0)
            square += piece.double().square().sum(dim=0)
        mean = total / len(flat)
        scale = 1.0 / (square / len(flat) - mean.square()).clamp_min(0).sqrt().clamp_min(1e-3)
        self.channel_scale[channels] = scale.float()
        self.channel_shift[channels] = (-mean * scale).float()

    def target(self, stored: Tensor) -> Tensor:
        """Raw features -> standardised where so configured, float32, laid out as before."""
        if not self.mixed:
            return stored.float() * self.channel_scale + self.channel_shift
        return pack(
            [
                self.tokens_of(stored, index).float() * self.channel_scale[channels]
                + self.channel_shift[channels]
                for index, channels in enumerate(self.depths)
            ]
        )

    def make_students(self) -> nn.ModuleList:
        """One per link."""
        students = nn.ModuleList()
        for source, wanted in self.links:
            inputs, outputs = self.width_of[source], self.width_of[wanted]
            hidden = self.config.hidden or (inputs + outputs) // 2
            students.append(student(inputs, hidden, outputs))
        return students


def pack(parts: list[Tensor]) -> Tensor:
    """Several [B, N, C], of different N and C -> [B, sum of N C]."""
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def coarser(tokens: Tensor, grid: int, wanted: int) -> Tensor:
    """[B, grid * grid, C] -> [B, wanted * wanted, C], means of squares of tokens."""
    if grid == wanted:
        return tokens
    side, width = grid // wanted, tokens.shape[-1]
    # One axis after the other: run-times are slow at means over two that do not touch.
    rows = tokens.reshape(-1, side, grid * width).mean(dim=1)
    return rows.reshape(-1, side, width).mean(dim=1).reshape(-1, wanted**2, width)


def student(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers with GELU between them, for each token [..., inputs] on its own."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, outputs),
    )
