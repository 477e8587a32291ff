"""Eq. 2-4 against a direct computation."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from metal_edge.models.losses import ReconstructionLoss


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 per channel, by SciPy, borders cut."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    values = []
    for x, y in zip(a, b, strict=True):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = 0.01**2, 0.03**2
        top = (2 * mx * my + c1) * (2 * cov + c2)
        values.append(top / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_loss_is_mean_absolute_error_minus_ssim() -> None:
    random = np.random.default_rng(0)
    a = random.random((3, 32, 32))
    b = np.clip(a + 0.1 * random.standard_normal(a.shape), 0, 1)
    loss = ReconstructionLoss(32).double()
    got = loss(torch.from_numpy(a)[None], torch.from_numpy(b)[None]).item()
    np.testing.assert_allclose(got, np.abs(a - b).mean() - reference_ssim(a, b), atol=1e-6)


def test_a_perfect_reconstruction_has_loss_minus_one() -> None:
    image = torch.rand(2, 3, 32, 32)
    assert abs(ReconstructionLoss(32)(image, image).item() + 1) < 1e-5
