"""A small MeTAL network and its exported graph, made once for these tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metal_edge.export.onnx_model import onnx_from_model, save_model
from metal_edge.models.metal import Metal, MetalConfig

SIZE = 32


@pytest.fixture(scope="session")
def frames() -> NDArray[np.uint8]:
    """Smooth random pictures, uint8 [12, 32, 32, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    return np.stack([cv2.resize(c, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for c in coarse])


@pytest.fixture(scope="session")
def network(frames: NDArray[np.uint8]) -> Metal:
    """Fitted to the frames: in an untrained network no layer matters enough to be tested."""
    torch.manual_seed(0)
    config = MetalConfig(image_size=SIZE, patch_size=8, embedding=16, heads=2, blur_sigma=2.0)
    model = Metal(config)
    image = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        (model(image) - image).abs().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def fp32(network: Metal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    save_model(onnx_from_model(network), path)
    return path
