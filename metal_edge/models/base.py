"""What every anomaly model offers to training, export and evaluation.

A model reconstructs something of an image it has not been shown directly: its pixels, or frozen
features of it. That something is the target::

    uint8 images --precompute--> stored --target--> target --forward--> reconstruction
                                                       \\______ error_map ______/
                                                                   |
                                             AnomalyScorer: weighting, smoothing, score

`stored` is what training keeps in memory per image, so that a frozen backbone runs once per
image and not once per epoch. At inference the same functions run one after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from metal_edge.models.smoothing import smoothing_matrix


class ModelConfig(BaseModel):
    """Fields that every architecture has; stored beside the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(gt=0, description="side of the square input, pixels")
    blur_sigma: float = Field(gt=0, description="Gaussian of the anomaly map, input pixels")
    weighting: bool = Field(
        description="divide the error by what good parts show at that place (after training)"
    )
    score_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="image score: mean of this share of the map's highest pixels; 0: the maximum",
    )

    @property
    def map_size(self) -> int:
        """Side of the error map before smoothing."""
        return self.image_size

    def filtering(self) -> Tensor:
        """float32 [image_size, image_size] M: the enlarged error map E is smoothed to M E M^T."""
        return smoothing_matrix(self.image_size, self.blur_sigma)


class AnomalyModel(nn.Module, ABC):
    """Base of the models; `expected_error` is fitted on good parts after training."""

    expected_error: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size = config.map_size
        self.register_buffer("expected_error", torch.ones(size, size))

    @abstractmethod
    def precompute(self, images: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] RGB -> what training stores per image, [B, ...]."""

    @abstractmethod
    def target(self, stored: Tensor) -> Tensor:
        """Stored -> float32 target of the reconstruction."""

    @abstractmethod
    def forward(self, target: Tensor) -> Tensor:
        """Target -> its reconstruction: the same shape, or several predictions side by side."""

    @abstractmethod
    def loss(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Scalar to minimise."""

    @abstractmethod
    def error_map(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """Reconstruction, target -> error float32 [B, map_size, map_size]."""

    def load_pretrained(self) -> None:
        """Fills a freshly built network's frozen part with its published weights; default: none.

        Raises:
            UnavailableError: the weights are not at hand.
            DataError: they are not the expected ones.
        """

    def fit_inputs(self, stored: Tensor) -> None:
        """Adapts fixed constants (not weights) to the stored training images; default: none."""

    def fit_errors(self, stored: Tensor) -> None:
        """Adapts constants of the error map to the trained network's errors; default: none.

        Args:
            stored: of training and validation images: after training, nothing watches any more.
        """


def weighting_of(mean_error: Tensor) -> Tensor:
    """Expected error per place, floored so that quiet places do not explode.

    Args:
        mean_error: mean of the error maps of good parts, [h, w].
    """
    return mean_error + 0.2 * mean_error.mean()
