"""MeTAL: masked transformer for image anomaly localization (De Nardin et al., 2022).

The image is cut into squares and into full-width (or full-height) stripes. Each shape has its
own embedding and masked transformer blocks (sec. 3.2.1). A stripe's encoding is split into as
many segments as it spans squares; each segment joins the encoding of the square it covers
(sec. 3.2.2, Fig. 5), and an MLP decodes every joined vector into that square's pixels.

The paper gives image and patch sizes, embedding 128, 4 heads and 1 (products) or 2 (textures)
blocks (Table 2). It does not give the MLP widths; those below reproduce its parameter counts
(Table 6: 17.8 M and 26.3 M). Norm placement (pre-norm), learned positions and MLP ratio 2
follow the same laboratory's VT-ADL.

With the mask `zeroleak` the branches give way to one stream of queries that cannot see their own
square (module `zeroleak`); squares, stripes, decoder, loss and error map stay.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from metal_edge.models.attention import EncoderBlock, MaskRule
from metal_edge.models.base import AnomalyModel, ModelConfig
from metal_edge.models.error_maps import GradientError
from metal_edge.models.losses import WINDOW, ReconstructionLoss
from metal_edge.models.shapes import Shape
from metal_edge.models.zeroleak import ZeroLeakEncoder, widest_radius


class ErrorKind(StrEnum):
    """What the anomaly map shows: the paper's squared error, the absolute one, which the few
    largest deviations do not rule, or edges that do not fit."""

    SQUARED = "squared"
    ABSOLUTE = "absolute"
    GRADIENTS = "gradients"


class MetalConfig(ModelConfig):
    """Architecture of one MeTAL network; stored beside its weights."""

    kind: Literal["metal"] = "metal"
    image_size: int = Field(default=128, gt=0)
    patch_size: int = Field(default=16, gt=0)
    shapes: tuple[Shape, ...] = (Shape.SQUARES, Shape.ROWS)
    mask: MaskRule = MaskRule.ZERO
    radius: int = Field(
        default=0, ge=0, description="zeroleak: hidden neighbourhood, Chebyshev, squares"
    )
    blocks: int = Field(
        default=1, ge=1, le=8, description="1 for products, 2 for textures (Table 2)"
    )
    heads: int = Field(default=4, gt=0)
    embedding: int = Field(default=128, gt=0, description="width per square token (Table 2)")
    square_hidden: int = 512
    stripe_hidden: int = 1024
    decoder_hidden: tuple[int, ...] = (512, 1024)
    mlp_ratio: int = 2
    blur_sigma: float = Field(default=4.0, gt=0)
    weighting: bool = False
    error: ErrorKind = ErrorKind.SQUARED

    @model_validator(mode="after")
    def _consistent(self) -> MetalConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.image_size < WINDOW:
            raise ValueError(f"image_size {self.image_size} is below the SSIM window, {WINDOW}")
        if self.error is ErrorKind.GRADIENTS and self.image_size % 4:
            raise ValueError(f"error gradients needs a multiple of 4, not {self.image_size} px")
        if not self.shapes or len(set(self.shapes)) != len(self.shapes):
            raise ValueError("shapes must name each patch shape at most once, and at least one")
        self._check_mask()
        return self

    def _check_mask(self) -> None:
        if self.mask is not MaskRule.ZEROLEAK:
            if self.radius:
                raise ValueError(f"radius {self.radius} needs mask zeroleak, not {self.mask}")
            return
        if self.joined % self.heads:
            raise ValueError(f"width {self.joined} is not divisible by {self.heads} heads")
        if self.radius > (widest := widest_radius(self.grid, self.shapes)):
            usable = f"at most {widest}" if widest >= 0 else "none, use smaller patches"
            raise ValueError(
                f"radius {self.radius} with {'+'.join(self.shapes)} on a grid of {self.grid} x"
                f" {self.grid} leaves a patch nothing to look at (usable radius: {usable})"
            )

    @property
    def grid(self) -> int:
        """Squares per side, p in the paper."""
        return self.image_size // self.patch_size

    @property
    def joined(self) -> int:
        """Width of what is known of each square, before the decoder (Fig. 5)."""
        return self.embedding * len(self.shapes)


class Branch(nn.Module):
    """One patch shape: cut, embed, encode, and hand each square its part of the encoding."""

    def __init__(self, config: MetalConfig, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.grid = config.grid
        self.patch = config.patch_size
        square = shape is Shape.SQUARES
        tokens = config.grid**2 if square else config.grid
        pixels = config.patch_size * (config.patch_size if square else config.image_size)
        width = config.embedding * (1 if square else config.grid)
        hidden = config.square_hidden if square else config.stripe_hidden
        self.embed = nn.Sequential(
            nn.Linear(3 * pixels, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.position = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(
            *(
                EncoderBlock(width, config.heads, tokens, config.mlp_ratio * width, config.mask)
                for _ in range(config.blocks)
            )
        )

    def tokens_of(self, squares: Tensor) -> Tensor:
        """Regroups square patches [B, g, g, 3*p*p] into this shape's tokens [B, N, pixels]."""
        batch, grid = squares.shape[0], self.grid
        if self.shape is Shape.SQUARES:
            return squares.reshape(batch, grid * grid, -1)
        if self.shape is Shape.COLS:
            squares = squares.transpose(1, 2)
        return squares.reshape(batch, grid, -1)

    def forward(self, squares: Tensor) -> Tensor:
        """[B, g, g, 3*p*p] -> [B, g, g, embedding]: the encoding that belongs to each square."""
        batch, grid = squares.shape[0], self.grid
        encoded = self.blocks(self.embed(self.tokens_of(squares)) + self.position)
        parts = encoded.reshape(batch, grid, grid, -1)  # a stripe's segments lie along it
        return parts.transpose(1, 2) if self.shape is Shape.COLS else parts  # type: ignore[no-any-return]


class Metal(AnomalyModel):
    """Reconstructs an image, each square from the encodings that cover it.

    Target and reconstruction are float32 [B, 3, S, S]; the target is in [0, 1], the
    reconstruction is not clamped.
    """

    config: MetalConfig

    def __init__(self, config: MetalConfig) -> None:
        super().__init__(config)
        self.reconstruction_loss = ReconstructionLoss(config.image_size)
        gradients = config.error is ErrorKind.GRADIENTS
        self.gradient_error = GradientError(config.image_size) if gradients else None
        zeroleak = config.mask is MaskRule.ZEROLEAK
        self.encoder = _zeroleak(config) if zeroleak else None
        self.branches = nn.ModuleList(
            () if zeroleak else (Branch(config, shape) for shape in config.shapes)
        )
        widths = (config.joined, *config.decoder_hidden)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.GELU()]
        layers.append(nn.Linear(widths[-1], 3 * config.patch_size**2))
        self.decoder = nn.Sequential(*layers)

    def precompute(self, images: Tensor) -> Tensor:
        """Training keeps the uint8 images [B, S, S, 3] themselves."""
        return images

    def target(self, stored: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [0, 1]."""
        return stored.float().permute(0, 3, 1, 2) / 255.0

    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """L1 - SSIM, eq. 4."""
        return self.reconstruction_loss(reconstruction, target)  # type: ignore[no-any-return]

    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Squared (sec. 4.4) or absolute error summed over R, G, B, or GradientError; [B, S, S]."""
        if self.gradient_error is not None:
            return self.gradient_error(reconstruction, target)  # type: ignore[no-any-return]
        difference = reconstruction - target
        squared = self.config.error is ErrorKind.SQUARED
        return (difference.square() if squared else difference.abs()).sum(dim=1)

    def forward(self, target: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 3, S, S]."""
        return self.paste(self.decoder(self.encode(self.cut(target))))

    def encode(self, squares: Tensor) -> Tensor:
        """[B, g, g, 3*p*p] -> [B, g, g, joined], what each square is decoded from."""
        if self.encoder is not None:
            return self.encoder(squares)  # type: ignore[no-any-return]
        return torch.cat([branch(squares) for branch in self.branches], dim=-1)

    def cut(self, image: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, g, g, 3*p*p], channel-major inside a patch."""
        grid, patch = self.config.grid, self.config.patch_size
        x = image.reshape(-1, 3, grid, patch, grid, patch)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, grid, grid, 3 * patch * patch)

    def paste(self, squares: Tensor) -> Tensor:
        """Inverse of `cut`."""
        grid, patch, size = self.config.grid, self.config.patch_size, self.config.image_size
        x = squares.reshape(-1, grid, grid, 3, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, size, size)


def _zeroleak(config: MetalConfig) -> ZeroLeakEncoder:
    """As wide as the paper's joined vectors, so that the decoder is the paper's as well."""
    return ZeroLeakEncoder(
        grid=config.grid,
        pixels=3 * config.patch_size**2,
        hidden=config.square_hidden,
        width=config.joined,
        shapes=config.shapes,
        radius=config.radius,
        blocks=config.blocks,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
    )
