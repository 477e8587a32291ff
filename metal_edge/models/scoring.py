"""From camera bytes to an anomaly map and a score, as one module: this is what is exported.

Normalisation, network, error map and smoothing live here so that training,
calibration, evaluation and the line cannot preprocess differently.
"""

from __future__ import annotations

from torch import Tensor, nn

from metal_edge.models.base import AnomalyModel
from metal_edge.models.smoothing import Smoothing


class AnomalyScorer(nn.Module):
    """uint8 frames in, anomaly maps and scores out.

    The model's error map, divided by what good parts show at that place where the model asks
    for that, brought to the input's size and smoothed (MeTAL sec. 4.4). The image score is the
    mean of the highest `score_share` of the map's pixels, or its maximum where that is 0. No
    score exceeds the maximum, so one threshold serves both: a rejected part has hot pixels.
    """

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.hottest = round(config.score_share * config.image_size**2)
        self.smooth = Smoothing(config.filtering(), config.map_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, S, S, 3] RGB -> anomaly_map float32 [B, S, S], score float32 [B]."""
        target = self.model.target(self.model.precompute(images))
        error = self.model.error_map(self.model(target), target)
        if self.model.config.weighting:
            error = error * (1.0 / self.model.expected_error)
        anomaly_map = self.smooth(error)
        pixels = anomaly_map.flatten(1)
        if self.hottest <= 1:
            return anomaly_map, pixels.amax(dim=1)
        if self.hottest == pixels.shape[1]:
            return anomaly_map, pixels.mean(dim=1)
        return anomaly_map, pixels.topk(self.hottest, dim=1, sorted=False).values.mean(dim=1)
