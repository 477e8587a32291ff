"""How unlike two images are, place by place, where their plain difference says too little."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metal_edge.models.smoothing import enlarging_matrix

_SCALES = (1, 2, 4)  # pixels per cell
_C = 0.0026  # Xue et al. 2014: 170 for values up to 255, here for values up to 1
_TINY = 1e-12  # the root's slope at 0
_SHORTEST = 1e-12  # a vector without length has no direction: it stays short


class GradientError(nn.Module):
    """1 - gradient magnitude similarity, mean over three scales.

    Xue et al., "Gradient Magnitude Similarity Deviation", IEEE TIP 2014, in several scales as by
    Zavrtanik et al., "Reconstruction by inpainting for visual anomaly detection", 2021. A wrong
    brightness leaves no trace, a missing or an added edge does.

    Args:
        size: side of the images, a multiple of 4.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size % _SCALES[-1]:
            raise ValueError(f"size {size} is not a multiple of {_SCALES[-1]}")
        for cell in _SCALES:
            # Slopes exist between the borders; each border cell takes its neighbour's value.
            whole = enlarging_matrix(size, size // cell)
            inner = whole[:, 1:-1].clone()
            inner[:, 0] += whole[:, 0]
            inner[:, -1] += whole[:, -1]
            self.register_buffer(f"enlarge{cell}", inner, persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two images [B, 3, S, S] in [0, 1] -> [B, S, S] in [0, 1]; about 0 where they agree."""
        total = torch.zeros_like(a[:, 0])
        for cell in _SCALES:
            one, other = slope(a, cell), slope(b, cell)
            unlike = 1.0 - (2.0 * one * other + _C) / (one.square() + other.square() + _C)
            matrix = self.get_buffer(f"enlarge{cell}")
            total = total + matrix @ unlike @ matrix.T
        return total * (1.0 / len(_SCALES))


def slope(image: Tensor, cell: int) -> Tensor:
    """Prewitt gradient magnitude of the mean of R, G, B at one scale.

    The subtractions come first, means after them (both are linear): what follows a subtraction
    stays FP32 in FP16 and INT8 graphs.

    Args:
        image: [B, 3, S, S].
        cell: side of the squares that are averaged first, pixels.

    Returns:
        [B, S / cell - 2, S / cell - 2].
    """
    step = 2 * cell
    across = _mean(image[..., :, step:] - image[..., :, :-step], cell, (3, 1))
    down = _mean(image[..., step:, :] - image[..., :-step, :], cell, (1, 3))
    return (across.square() + down.square() + _TINY).sqrt()


def _mean(differences: Tensor, cell: int, window: tuple[int, int]) -> Tensor:
    cells = F.avg_pool2d(differences.mean(dim=1, keepdim=True), cell)
    return F.avg_pool2d(cells, window, stride=1)[:, 0]


def direction_distance(got: Tensor, wanted: Tensor) -> Tensor:
    """[B, N, C] twice -> [B, N]: Euclidean distance of the L2-normalised vectors, 0..2.

    `F.normalize` would do, but exports a node that repeats each norm over all channels.
    """
    return (_direction(got) - _direction(wanted)).square().sum(dim=-1).sqrt()


def _direction(vectors: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    directions: Tensor = vectors / norms.clamp_min(_SHORTEST)
    return directions
