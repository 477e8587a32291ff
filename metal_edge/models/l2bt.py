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
students between neighbours, all distances multiplied. The filters' borders are mirrored here.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from metal_edge.models.error_maps import direction_distance
from metal_edge.models.smoothing import box_matrix, smoothing_matrix
from metal_edge.models.tokens import TokenConfig, TokenModel


class L2BTConfig(TokenConfig):
    """Architecture of one L2BT network; stored beside its weights."""

    kind: Literal["l2bt"] = "l2bt"
    blur_sigma: float = Field(default=4.7, gt=0, description="used where `boxes` is empty")
    score_share: float = Field(default=0.001, ge=0, le=1)
    boxes: tuple[int, ...] = Field(
        default=(5, 5, 5, 5, 5, 7, 7, 7),
        description="box filters of the map, odd sides in pixels; empty: Gaussian",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.levels) < 2:
            raise ValueError("L2BT needs at least two different levels, shallow to deep")
        if any(side < 1 or side % 2 == 0 for side in self.boxes):
            raise ValueError("boxes must have odd sides")
        return self

    @classmethod
    def for_vit(cls, backbone: str, **changes: Any) -> Self:
        """The published network on a named ViT; see `TokenConfig.for_vit`."""
        return super().for_vit(backbone, **{"hidden": 0, "standardise": False, **changes})

    def filtering(self) -> Tensor:
        """Box filters as published, or a Gaussian."""
        if self.boxes:
            return box_matrix(self.image_size, self.boxes)
        return smoothing_matrix(self.image_size, self.blur_sigma)


class L2BT(TokenModel):
    """The reconstruction holds every student's prediction, in the order of `links`."""

    config: L2BTConfig

    def __init__(self, config: L2BTConfig) -> None:
        super().__init__(config)
        self.students = self.make_students()

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
            product = product * direction_distance(got, wanted)
        if len(self.links) > 2:
            product = product ** (2.0 / len(self.links))
        return product.reshape(-1, self.config.grid, self.config.grid)

    def _pairs(self, reconstruction: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Prediction and what it should be, per student."""
        wanted = [target[..., self.depths[index]] for _, index in self.links]
        sizes = [part.shape[-1] for part in wanted]
        parts = torch.split(reconstruction, sizes, dim=-1)
        return list(zip(parts, wanted, strict=True))
