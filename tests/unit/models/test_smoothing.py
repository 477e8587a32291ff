"""The matrix filters against SciPy, and the scored module against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from metal_edge.models.metal import Metal, MetalConfig
from metal_edge.models.scoring import AnomalyScorer
from metal_edge.models.smoothing import Smoothing, smoothing_matrix, valid_matrix


@pytest.mark.parametrize(("size", "sigma"), [(32, 1.0), (32, 4.0), (20, 6.0), (128, 4.0)])
def test_smoothing_is_scipys_gaussian_filter(size: int, sigma: float) -> None:
    image = np.random.default_rng(0).random((size, size)).astype(np.float32)
    got = Smoothing(smoothing_matrix(size, sigma))(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(got, gaussian_filter(image, sigma), atol=2e-6)


def test_a_valid_window_is_the_filter_without_its_borders() -> None:
    line = np.random.default_rng(1).random(40)
    got = valid_matrix(40, 1.5, 11).double().numpy() @ line
    whole = gaussian_filter(line, 1.5, truncate=5 / 1.5)
    np.testing.assert_allclose(got, whole[5:-5], atol=1e-6)


def test_the_map_is_the_smoothed_squared_error_summed_over_rgb() -> None:
    config = MetalConfig(image_size=32, patch_size=8, embedding=8, heads=2, blur_sigma=2.0)
    model = Metal(config).eval()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        anomaly_map, score = AnomalyScorer(model).eval()(pixels)
        image = pixels.permute(0, 3, 1, 2).float() / 255
        error = (model(image) - image).numpy() ** 2
    expected = np.stack([gaussian_filter(e.sum(axis=0), 2.0) for e in error])
    np.testing.assert_allclose(anomaly_map.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(score.numpy(), expected.max(axis=(1, 2)), atol=1e-5)
