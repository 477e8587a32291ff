"""Gradient similarity and distance of directions: against a plain reference, laws, graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import ValidationError
from scipy.ndimage import convolve
from torch import Tensor

from metal_edge.export.onnx_model import check_parity, onnx_from_model, probe_images, save_model
from metal_edge.models.error_maps import GradientError, direction_distance, slope
from metal_edge.models.metal import ErrorKind, Metal, MetalConfig
from metal_edge.quantize.layers import linear_layers, nodes_after_reconstruction


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def reference_slope(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prewitt by convolution, valid positions, of one [S, S] image."""
    kernel = np.array([[1.0, 0.0, -1.0]] * 3) / 3
    across, down = convolve(image, kernel), convolve(image, kernel.T)
    return np.hypot(across, down)[1:-1, 1:-1]


@pytest.mark.parametrize("cell", [1, 2, 4])
def test_the_slope_is_prewitts_of_the_averaged_grey_image(images: Tensor, cell: int) -> None:
    grey = images.double().mean(dim=1).numpy()
    averaged = grey.reshape(2, 16 // cell, cell, 16 // cell, cell).mean(axis=(2, 4))
    wanted = np.stack([reference_slope(image) for image in averaged])
    assert np.allclose(slope(images, cell).numpy(), wanted, atol=1e-5)


def test_brightness_leaves_no_trace_and_an_edge_does(images: Tensor) -> None:
    error = GradientError(16)
    assert error(images, images).abs().max() < 1e-6
    assert error(images, images + 0.3).abs().max() < 1e-3
    flat, edge = torch.full((1, 3, 64, 64), 0.5), torch.full((1, 3, 64, 64), 0.5)
    edge[..., 40:] = 1.0
    unlike = GradientError(64)(flat, edge)[0]
    assert unlike[:, 39:41].min() > 0.9
    assert unlike[:, :24].max() < 0.01


def test_it_is_symmetric_and_between_0_and_1(images: Tensor) -> None:
    error, other = GradientError(16), images.flip(-1)
    assert torch.allclose(error(images, other), error(other, images), atol=1e-6)
    assert error(images, other).min() > -1e-6
    assert error(images, other).max() <= 1.0


def test_a_nan_reaches_the_map(images: Tensor) -> None:
    broken = images.clone()
    broken[0, 1, 5, 5] = torch.nan
    assert GradientError(16)(broken, images)[0].isnan().any()


def test_a_size_without_all_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        GradientError(30)
    with pytest.raises(ValidationError, match="multiple of 4"):
        MetalConfig(image_size=30, patch_size=10, error=ErrorKind.GRADIENTS)


@pytest.mark.parametrize(
    ("error", "expected"), [(ErrorKind.SQUARED, 0.25 + 0.01), (ErrorKind.ABSOLUTE, 0.5 + 0.1)]
)
def test_differences_are_summed_over_the_colours(error: ErrorKind, expected: float) -> None:
    model = Metal(MetalConfig(image_size=32, patch_size=8, embedding=16, heads=2, error=error))
    wanted = torch.full((1, 3, 32, 32), 0.5)
    got = wanted.clone()
    got[0, :, 4, 7] += torch.tensor([0.5, -0.1, 0.0])
    found = model.error_map(got, wanted)
    assert found.shape == (1, 32, 32)
    assert found[0, 4, 7].item() == pytest.approx(expected)
    assert found.sum().item() == pytest.approx(expected)


def test_the_graph_agrees_and_the_whole_error_stays_fp32(tmp_path: Path) -> None:
    config = MetalConfig(
        image_size=32, patch_size=8, embedding=16, heads=2, error=ErrorKind.GRADIENTS
    )
    torch.manual_seed(0)
    model = Metal(config).eval()
    graph: ModelProto = onnx_from_model(model)
    save_model(graph, tmp_path / "m.onnx")
    assert check_parity(model, tmp_path / "m.onnx", probe_images(32)) < 1e-3
    roots = [node for node in graph.graph.node if node.op_type in {"Sqrt", "AveragePool"}]
    assert roots
    assert {node.name for node in roots} <= nodes_after_reconstruction(graph)
    squared = onnx_from_model(Metal(config.model_copy(update={"error": ErrorKind.SQUARED})))
    assert len(linear_layers(graph)) == len(linear_layers(squared))


@given(seed=st.integers(0, 2**16))
def test_direction_distance_is_that_of_normalised_vectors(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    got, wanted = torch.randn(2, 3, 5, 7, generator=generator)
    got[0, 0] = 0.0
    wanted[1, 1] = 2.0 * got[1, 1]
    expected = (F.normalize(got, dim=-1) - F.normalize(wanted, dim=-1)).norm(dim=-1)
    found = direction_distance(got, wanted)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found[1, 1] < 1e-6
    assert (found <= 2.0 + 1e-6).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_direction_that_is_no_number_stays_none(bad: float) -> None:
    got = torch.ones(1, 2, 3)
    got[0, 1, 2] = bad
    found = direction_distance(got, torch.ones(1, 2, 3))
    assert found[0, 0] == 0.0
    assert torch.isnan(found[0, 1])
