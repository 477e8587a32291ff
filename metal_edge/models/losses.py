"""MeTAL's training loss: mean absolute error minus structural similarity (eq. 2-4).

Eq. 2 writes the L1 term as a sum over pixels, which would drown the SSIM term (at most 1); the
mean is used. SSIM follows Wang et al. 2004: Gaussian window 11, sigma 1.5, K1 0.01, K2 0.03,
dynamic range 1, valid positions only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metal_edge.models.smoothing import valid_matrix

WINDOW = 11
SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2


class ReconstructionLoss(nn.Module):
    """L1(mean) - SSIM(mean) of float32 images [B, 3, size, size] in [0, 1]; best value is -1."""

    matrix: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("matrix", valid_matrix(size, SIGMA, WINDOW), persistent=False)

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Scalar loss."""
        l1 = (reconstruction - image).abs().mean()
        return l1 - self.ssim(reconstruction, image)

    def ssim(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean structural similarity, scalar in [-1, 1]."""
        maps = torch.cat([a, b, a * a, b * b, a * b])
        mean_a, mean_b, aa, bb, ab = self._blur(maps).chunk(5)
        variance_a, variance_b = aa - mean_a**2, bb - mean_b**2
        covariance = ab - mean_a * mean_b
        light = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
        return (light * structure).mean()

    def _blur(self, x: Tensor) -> Tensor:
        return self.matrix @ x @ self.matrix.T
