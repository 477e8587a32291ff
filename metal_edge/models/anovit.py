"""AnoViT: a ViT encoder and a convolutional decoder that rebuild the image (Lee and Kang 2022,
arXiv 2203.10808).

All patch tokens after the encoder's final LayerNorm form a map, which transposed convolutions
bring to image size: three of stride 1, three of stride 2, the rest by bilinear interpolation.

As published: `vit_base_patch16_384` with ImageNet weights, a 768 x 24 x 24 map, sides
26, 28, 30, 59, 117, 233, then 384; 2,162,083 parameters in the decoder (`AnoViTConfig.for_vit`).
The default is a small ViT of the same kind, trained from scratch.

Ranges. The paper ends the decoder in InstanceNorm, ReLU and Tanh, i.e. in [0, 1), and its public
code compares that with images normalised by mean and deviation, which lie elsewhere. Here the
target is the image in [-1, 1] and the last transposed convolution is followed by Tanh only:
InstanceNorm there would prescribe every image's mean colour, ReLU would cut half of the range.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from metal_edge.models.base import AnomalyModel, ModelConfig
from metal_edge.models.vit import PlainViT, TimmTokens, check_vit, shape_of, timm_name

SCRATCH = "scratch"


class AnoViTConfig(ModelConfig):
    """Architecture of one AnoViT network; stored beside its weights.

    `patch_size`, `width`, `depth` and `heads` describe the encoder trained from scratch; a timm
    backbone has its own (`patch_size` and `width` must then be equal to them).
    """

    kind: Literal["anovit"] = "anovit"
    image_size: int = Field(default=128, gt=0)
    blur_sigma: float = Field(default=4.0, gt=0)
    weighting: bool = False
    backbone: str = Field(default=SCRATCH, description="scratch, or timm:NAME")
    backbone_weights: str | None = Field(
        default=None, description="timm: safetensors file read when training starts"
    )
    patch_size: int = Field(default=16, gt=0)
    width: int = Field(default=192, gt=0)
    depth: int = Field(default=4, ge=1)
    heads: int = Field(default=3, gt=0)
    mlp_ratio: int = Field(default=4, ge=1)
    decoder: tuple[int, ...] = Field(
        default=(256, 128, 64, 32, 16),
        description="channels between the transposed convolutions; 5, the last 3 have stride 2",
    )

    @model_validator(mode="after")
    def _consistent(self) -> AnoViTConfig:
        name = timm_name(self.backbone)
        if name is None and self.backbone != SCRATCH:
            raise ValueError(
                f"AnoViT's backbone {self.backbone!r} is neither scratch nor timm:NAME"
            )
        if name is None and self.backbone_weights is not None:
            raise ValueError("backbone weights are for timm:NAME, not for an encoder from scratch")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if name is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if len(self.decoder) != 5:
            raise ValueError("decoder must name 5 channel counts")
        return self

    @classmethod
    def for_vit(cls, backbone: str, **changes: Any) -> AnoViTConfig:
        """The published network around a named ViT; its own input size unless `changes` has one.

        Raises:
            UnavailableError: timm is not installed.
            SettingsError: timm has no such ViT, or it not that size.
        """
        name = backbone.removeprefix("timm:")
        shape = shape_of(name)
        check_vit(name, changes.get("image_size", shape.image_size), ())
        own = {"image_size": shape.image_size, "patch_size": shape.patch, "width": shape.width}
        return cls.model_validate({"backbone": backbone, **own, **changes})

    @property
    def grid(self) -> int:
        """Tokens per side."""
        return self.image_size // self.patch_size


class Decoder(nn.Module):
    """Six 3 x 3 transposed convolutions; InstanceNorm and ReLU after all but the last.

    Args:
        channels: seven counts, from the tokens' width to the image's 3.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(channels)):
            stride, padding = (1, 0) if index < 3 else (2, 1)
            layers.append(nn.ConvTranspose2d(inputs, outputs, 3, stride, padding))
            if index < len(channels) - 2:
                layers += [nn.InstanceNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, g, g] -> [B, 3, G, G] in (-1, 1), G = 8 g + 41."""
        return self.layers(x)  # type: ignore[no-any-return]


class AnoViT(AnomalyModel):
    """Target and reconstruction are images, float32 [B, 3, S, S] in [-1, 1]."""

    config: AnoViTConfig

    def __init__(self, config: AnoViTConfig) -> None:
        super().__init__(config)
        name = timm_name(config.backbone)
        self.encoder: PlainViT | TimmTokens
        if name is None:
            self.encoder = PlainViT(
                image_size=config.image_size,
                patch=config.patch_size,
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
            )
        else:
            last = (shape_of(name).depth - 1,)
            self.encoder = TimmTokens(name, config.image_size, last, final_norm=True)
        self.decoder = Decoder((config.width, *config.decoder, 3))

    def load_pretrained(self) -> None:
        """A timm encoder's published weights; they are trained on, with all others."""
        if isinstance(self.encoder, TimmTokens):
            file = self.config.backbone_weights
            self.encoder.load_weights(None if file is None else Path(file))

    def precompute(self, images: Tensor) -> Tensor:
        """Training keeps the uint8 images [B, S, S, 3] themselves."""
        return images

    def target(self, stored: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [-1, 1]."""
        return stored.float().permute(0, 3, 1, 2) * (2.0 / 255.0) + -1.0

    def forward(self, target: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 3, S, S] in (-1, 1)."""
        tokens = self.encoder(target)
        image = self.decoder(tokens if isinstance(tokens, Tensor) else tokens[-1])
        size = self.config.image_size
        return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)

    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(reconstruction, target)

    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Squared error summed over R, G, B, [B, S, S]."""
        return (reconstruction - target).square().sum(dim=1)
