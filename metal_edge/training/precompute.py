"""What a model gives for each stored image: its frozen part before training, its error after."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metal_edge.models.base import AnomalyModel

CHUNK = 16


def precompute(model: AnomalyModel, images: Tensor, on_done: Callable[[int, int], None]) -> Tensor:
    """Runs the frozen part of a model once per image.

    Args:
        images: uint8 [N, S, S, 3].

    Returns:
        What training stores: bytes as they are, numbers as float16 to halve the memory.
    """
    pieces = []
    with torch.inference_mode():
        for piece in torch.split(images, CHUNK):
            stored = model.precompute(piece)
            pieces.append(stored.half() if stored.is_floating_point() else stored)
            on_done(sum(map(len, pieces)), len(images))
    return torch.cat(pieces)


def mean_error(model: AnomalyModel, stored: Tensor) -> Tensor:
    """Mean error map over stored good images, [map_size, map_size]."""
    model.eval()
    total = torch.zeros_like(model.expected_error)
    with torch.inference_mode():
        for piece in torch.split(stored, CHUNK):
            target = model.target(piece)
            total += model.error_map(model(target), target).sum(dim=0)
    return total / len(stored)
