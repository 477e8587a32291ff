"""Whitening of residuals: the same deviation counts more in a direction that is usually quiet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SHRINKAGE = 0.05  # of the covariance towards its mean variance: few images, many channels
_TINY = 1e-6


class Moments:
    """Mean and covariance of residuals [..., C], accumulated in double precision."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.product = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, residual: Tensor) -> None:
        """[..., C], one more batch."""
        flat = residual.reshape(-1, residual.shape[-1]).double()
        self.count += len(flat)
        self.total += flat.sum(dim=0)
        self.product += flat.T @ flat

    @property
    def mean(self) -> Tensor:
        """float64 [C]."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """float64 [C, C]."""
        return self.product / self.count - torch.outer(self.mean, self.mean)


class Whitening(nn.Module):
    """Affine map under which the fitted residuals have mean 0 and (nearly) unit covariance."""

    matrix: Tensor
    offset: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(channels))
        self.register_buffer("offset", torch.zeros(channels))

    def fit(self, moments: Moments) -> None:
        """Takes matrix and offset from what good parts show."""
        covariance = moments.covariance
        variance = covariance.diagonal().mean().clamp_min(_TINY)
        covariance = covariance + _SHRINKAGE * variance * torch.eye(len(covariance)).double()
        matrix = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        self.matrix.copy_(matrix.float())
        self.offset.copy_((-moments.mean @ matrix).float())

    def forward(self, residual: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return residual @ self.matrix + self.offset
