"""Small nets and tokens for the tools' tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tools.results.patchcore import PatchCore, PatchCoreConfig


@pytest.fixture
def small_patchcore() -> PatchCore:
    """64 px, 4 x 4 tokens, random backbone: nothing here depends on what it has learned."""
    torch.manual_seed(3)
    return PatchCore(PatchCoreConfig(image_size=64, grid=4, blur_sigma=2.0, coreset=0.5)).eval()


@pytest.fixture
def pictures() -> Tensor:
    """uint8 [6, 64, 64, 3] noise."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8, generator=generator)
