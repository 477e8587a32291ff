"""From camera bytes to an anomaly map and a score, as one module: this is what is exported.

Normalisation, network, error map and Gaussian smoothing live here so that training,
calibration, evaluation and the line cannot preprocess differently.
"""

from __future__ import annotations

from torch import Tensor, nn

from metal_edge.models.base import AnomalyModel
from metal_edge.models.smoothing import GaussianSmoothing


class AnomalyScorer(nn.Module):
    """uint8 frames in, anomaly maps and scores out.

    The model's error map, divided by what good parts show at that place where the model asks
    for that, brought to the input's size and smoothed (MeTAL sec. 4.4). The image score is the
    map's maximum, so that one threshold serves both.
    """

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.smooth = GaussianSmoothing(config.image_size, config.blur_sigma, config.map_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S, 3] RGB -> anomaly_map float32 [B, S, S], score float32 [B]."""
        target = self.model.target(self.model.precompute(images))
        error = self.model.error_map(self.model(target), target)
        if self.model.config.weighting:
            error = error * (1.0 / self.model.expected_error)
        anomaly_map = self.smooth(error)
        return anomaly_map, anomaly_map.flatten(1).amax(dim=1)
