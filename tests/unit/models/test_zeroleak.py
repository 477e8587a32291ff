"""ZeroLeak is proven here: which pixels reach a patch's reconstruction, exactly.

For every union of shapes, radius and depth: the Jacobian block of a patch's own pixels (and of
all else that its mask hides) is 0.0, and its reconstruction stays bitwise equal when they become
noise. In PyTorch, and in the deployed ONNX graph run by ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.utils import Extractor
from torch import Tensor

from metal_edge.export.onnx_model import onnx_from_model
from metal_edge.models.attention import MaskRule
from metal_edge.models.base import AnomalyModel
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.models.metal import Metal, MetalConfig
from metal_edge.models.shapes import Shape
from metal_edge.models.zeroleak import (
    CrossAttentionBlock,
    allowed_tokens,
    mask_bias,
    widest_radius,
)

UNIONS = [union for count in (1, 2, 3) for union in combinations(Shape, count)]
GRID, PATCH = 4, 4
SQUARES = GRID * GRID


def visible(shapes: tuple[Shape, ...], radius: int, grid: int = GRID) -> NDArray[np.bool_]:
    """bool [N, N], from the words of the construction: may pixels of square j reach square i?"""
    row, col = np.divmod(np.arange(grid * grid), grid)
    rows_apart = abs(row[:, None] - row)
    cols_apart = abs(col[:, None] - col)
    kept = {
        Shape.SQUARES: np.maximum(rows_apart, cols_apart) > radius,
        Shape.ROWS: rows_apart > radius,
        Shape.COLS: cols_apart > radius,
    }
    return np.any([kept[shape] for shape in shapes], axis=0)


def lively(model: Metal | MetalFeatures) -> AnomalyModel:
    """Random weights of a trained network's size: fresh ones attend to everything alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def network(shapes: tuple[Shape, ...], radius: int, blocks: int, **changes: object) -> Metal:
    torch.manual_seed(0)
    values: dict[str, object] = {
        "image_size": GRID * PATCH,
        "patch_size": PATCH,
        "shapes": shapes,
        "mask": "zeroleak",
        "radius": radius,
        "blocks": blocks,
        "embedding": 4,
        "heads": 2,
        "square_hidden": 8,
        "stripe_hidden": 8,
        "decoder_hidden": (8,),
    }
    model = Metal(MetalConfig.model_validate(values | changes))
    lively(model)
    return model


def influence(model: Metal) -> NDArray[np.bool_]:
    """bool [N, N]: is any entry of d reconstruction_i / d square_j not exactly 0.0?"""
    size = model.config.image_size
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    squares = model.cut(image)

    def rebuilt(squares: Tensor) -> Tensor:
        return model.cut(model(model.paste(squares))).reshape(SQUARES, -1)[:, ::8]

    jacobian = torch.autograd.functional.jacobian(rebuilt, squares, vectorize=True)
    blocks = jacobian.reshape(SQUARES, -1, SQUARES, squares.shape[-1])
    assert torch.isfinite(blocks).all()
    return (blocks != 0).any(dim=3).any(dim=1).numpy()


Rebuild = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def unchanged_by_noise(
    rebuild: Rebuild, tokens: NDArray[np.float32], seen: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """bool [N]: is token i rebuilt bitwise alike when what it may not see is +-50 noise?

    Args:
        rebuild: [N, N, C] -> [N, N, C], N images of N tokens.
        tokens: float32 [N, C], one image.
        seen: bool [N, N], see `visible`.
    """
    noise = np.random.default_rng(3).normal(0, 50, (len(tokens), *tokens.shape))
    images = np.broadcast_to(tokens, noise.shape).copy()
    before = rebuild(images)
    images[~seen] = noise[~seen]  # image i hides what token i may not see
    after = rebuild(images)
    own = np.arange(len(tokens))
    return np.asarray((before[own, own] == after[own, own]).all(axis=1))


def in_torch(model: Metal) -> Rebuild:
    grid = model.config.grid

    def rebuild(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        squares = torch.from_numpy(tokens).unflatten(1, (grid, grid))
        with torch.inference_mode():
            return model.cut(model(model.paste(squares))).flatten(1, 2).numpy()

    return rebuild


def deployed(model: AnomalyModel, shape: list[int]) -> onnx.ModelProto:
    """The deployed graph between target and reconstruction, both of `shape` after the batch.

    They are what its error map subtracts from each other.
    """
    graph = onnx.shape_inference.infer_shapes(onnx_from_model(model))
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        for value in graph.graph.value_info
    }
    found = [
        node
        for node in graph.graph.node
        if node.op_type == "Sub" and all(shapes.get(name) == shape for name in node.input)
    ]
    assert len(found) == 1
    rebuilt, target = found[0].input
    return Extractor(graph).extract_model([target], [rebuilt])


def session_of(graph: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph.SerializeToString(), options)


def in_onnx(model: Metal, graph: onnx.ModelProto) -> Rebuild:
    grid, session = model.config.grid, session_of(graph)
    name = session.get_inputs()[0].name

    def rebuild(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        images = model.paste(torch.from_numpy(tokens).unflatten(1, (grid, grid)))
        (rebuilt,) = session.run(None, {name: images.numpy()})
        return model.cut(torch.from_numpy(rebuilt)).flatten(1, 2).numpy()

    return rebuild


def picture(model: Metal) -> NDArray[np.float32]:
    return np.random.default_rng(4).random((SQUARES, 3 * PATCH**2), dtype=np.float32)


@pytest.mark.parametrize("blocks", range(1, 9))
@pytest.mark.parametrize("radius", [0, 1])
@pytest.mark.parametrize("shapes", UNIONS, ids="+".join)
def test_exactly_the_allowed_squares_reach_a_reconstruction(
    shapes: tuple[Shape, ...], radius: int, blocks: int
) -> None:
    model = network(shapes, radius, blocks)
    seen = visible(shapes, radius)
    assert not seen.diagonal().any()
    np.testing.assert_array_equal(influence(model), seen)
    rebuild = in_torch(model)
    assert unchanged_by_noise(rebuild, picture(model), seen).all()
    assert not unchanged_by_noise(rebuild, picture(model), ~seen).any()


# All depths, all unions, both radii; an export takes seconds, so not each with each.
EXPORTED = {blocks: (UNIONS[blocks % 7], blocks % 2) for blocks in range(1, 9)}


@cache
def exported(blocks: int) -> onnx.ModelProto:
    """Kept for another test; nobody may change it."""
    model = network(*EXPORTED[blocks], blocks)
    return deployed(model, [3, model.config.image_size, model.config.image_size])


@pytest.mark.parametrize("blocks", EXPORTED)
def test_the_deployed_graph_leaks_as_little(blocks: int) -> None:
    model, seen = network(*EXPORTED[blocks], blocks), visible(*EXPORTED[blocks])
    rebuild = in_onnx(model, exported(blocks))
    assert unchanged_by_noise(rebuild, picture(model), seen).all()
    assert not unchanged_by_noise(rebuild, picture(model), ~seen).any()
    tokens = picture(model)[None]
    np.testing.assert_allclose(rebuild(tokens), in_torch(model)(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [MaskRule.OFF, MaskRule.ZERO, MaskRule.NEG_INF])
def test_the_papers_own_masks_would_be_found_out(mask: MaskRule) -> None:
    model = network((Shape.SQUARES,), 0, 1, mask=mask)
    seen = visible((Shape.SQUARES,), 0)
    assert influence(model).diagonal().all()
    assert not unchanged_by_noise(in_torch(model), picture(model), seen).any()


def test_one_hole_in_the_mask_would_be_found() -> None:
    blocks = 3
    model, seen = network(*EXPORTED[blocks], blocks), visible(*EXPORTED[blocks])
    assert model.encoder is not None
    bias = model.encoder.bias.numpy().copy()
    model.encoder.bias[5, 5] = 0.0
    assert np.argwhere(influence(model) != seen).tolist() == [[5, 5]]
    graph = onnx.ModelProto()
    graph.CopyFrom(exported(blocks))
    for tensor in graph.graph.initializer:
        if np.array_equal(np.squeeze(onnx.numpy_helper.to_array(tensor)), bias):
            holed = model.encoder.bias.numpy().reshape(tuple(tensor.dims))
            tensor.CopyFrom(onnx.numpy_helper.from_array(holed, tensor.name))
    for rebuild in (in_torch(model), in_onnx(model, graph)):
        assert np.flatnonzero(~unchanged_by_noise(rebuild, picture(model), seen)).tolist() == [5]


def test_the_deployed_features_network_hides_a_token_and_its_neighbourhood() -> None:
    """With two of the backbone's levels, for an export in seconds; the context sees both."""
    torch.manual_seed(0)
    radius = 1
    config = {"image_size": 64, "grid": 4, "width": 16, "heads": 4, "depth": 2, "memory": 8}
    model = MetalFeatures(
        MetalFeaturesConfig.model_validate(
            config | {"radius": radius, "levels": ("stride4", "stride8")}
        )
    )
    lively(model)
    example = model.target(model.precompute(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)))
    session = session_of(deployed(model, list(example.shape[1:])))
    name = session.get_inputs()[0].name

    def rebuild(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        (rebuilt,) = session.run(None, {name: tokens})
        return np.asarray(rebuilt)

    tokens = np.random.default_rng(5).normal(size=example.shape[1:]).astype(np.float32)
    seen = visible((Shape.SQUARES,), radius)
    assert unchanged_by_noise(rebuild, tokens, seen).all()
    assert not unchanged_by_noise(rebuild, tokens, ~seen).any()


@settings(max_examples=40)
@given(
    grid=st.integers(1, 6),
    shapes=st.lists(st.sampled_from(Shape), min_size=1, max_size=3, unique=True),
    radius=st.integers(0, 5),
)
def test_a_token_is_allowed_if_none_of_its_squares_is_near(
    grid: int, shapes: list[Shape], radius: int
) -> None:
    allowed = np.concatenate(
        [visible((shape,), radius, grid)[:, first] for shape, first in _firsts(grid, shapes)],
        axis=1,
    )
    np.testing.assert_array_equal(allowed_tokens(grid, shapes, radius), allowed)
    enough = bool(allowed.any(axis=1).all())
    assert enough == (radius <= widest_radius(grid, shapes))
    if not enough:
        with pytest.raises(ValueError, match="nothing to look at"):
            mask_bias(allowed)


def _firsts(grid: int, shapes: list[Shape]) -> list[tuple[Shape, NDArray[np.int64]]]:
    """A square of each token: squares in one stripe are all seen or all hidden through it."""
    first = {
        Shape.SQUARES: np.arange(grid * grid),
        Shape.ROWS: np.arange(grid) * grid,
        Shape.COLS: np.arange(grid),
    }
    return [(shape, first[shape]) for shape in shapes]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 4900))
def test_a_masked_weight_is_exactly_zero_whatever_the_scores(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(6, 9, generator=generator) > 0.7
    allowed[:, 0] = True
    scores = spread * (2 * torch.rand(6, 9, generator=generator) - 1)
    weights = (scores + mask_bias(allowed.numpy())).softmax(dim=-1)
    assert (weights[~allowed] == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(6))


def test_the_block_agrees_with_its_definition() -> None:
    """Fewer queries than tokens, a bias per head, queries shared by the images or not."""
    torch.manual_seed(3)
    block = CrossAttentionBlock(8, 2, 2).double()
    queries, content = torch.randn(1, 3, 8).double(), torch.randn(2, 5, 8).double()
    bias = torch.randn(2, 3, 5).double()
    with torch.no_grad():
        got = block(queries, content, bias)
        torch.testing.assert_close(block(queries.expand(2, -1, -1), content, bias), got)
        torch.testing.assert_close(
            block(queries, content, bias[:1].expand(2, -1, -1)),
            block(queries, content, bias[0]),
        )
        query = block.query(block.norm_query(queries))[0]
        mixed = torch.zeros(2, 3, 8).double()
        for image in range(2):
            key, value = block.key_value(block.norm_content(content[image])).split(8, dim=-1)
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                score = query[:, part] @ key[:, part].T / 2.0 + bias[head]  # 2 = sqrt(8 / 2)
                weights = score.exp() / score.exp().sum(dim=1, keepdim=True)
                mixed[image, :, part] = weights @ value[:, part]
        joined = queries + block.project(mixed)
        expected = joined + block.mlp(block.norm_mlp(joined))
    torch.testing.assert_close(got, expected)
