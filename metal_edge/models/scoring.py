"""From camera bytes to an anomaly map and a score, as one module: this is what is exported.

Normalisation, network, error map and Gaussian smoothing live here so that training,
calibration, evaluation and the line cannot preprocess differently.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metal_edge.models.metal import Metal
from metal_edge.models.smoothing import GaussianSmoothing


class AnomalyScorer(nn.Module):
    """uint8 frames in, anomaly maps and scores out.

    The map is the squared reconstruction error summed over R, G, B and smoothed (MeTAL
    sec. 4.4); the image score is the map's maximum, so one threshold serves both.
    """

    def __init__(self, model: Metal) -> None:
        super().__init__()
        self.model = model
        self.smooth = GaussianSmoothing(model.config.image_size, model.config.blur_sigma)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S, 3] RGB -> anomaly_map float32 [B, S, S], score float32 [B]."""
        x = image.permute(0, 3, 1, 2).to(torch.float32) / 255.0  # [B, 3, S, S] in [0, 1]
        error = (self.model(x) - x).square().sum(dim=1)  # [B, S, S]
        anomaly_map = self.smooth(error)
        return anomaly_map, anomaly_map.flatten(1).amax(dim=1)
