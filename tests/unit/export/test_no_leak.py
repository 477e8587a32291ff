"""A ZeroLeak mask still hides everything when FP16 casts or INT8 Q/DQ are in the graph.

Round to less, and a leak of one bit would stay one: own patches are replaced by noise, and their
reconstructions must be bitwise what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.utils import Extractor

from metal_edge.export.onnx_model import onnx_from_model, save_model
from metal_edge.export.precision import EnginePrecision, write_precision
from metal_edge.export.tensorrt_int8 import int8_for_tensorrt
from metal_edge.models.attention import MaskRule
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig, allowed_tokens
from metal_edge.models.metal import MetalConfig
from metal_edge.models.registry import build_model

GRID = 4
PRECISIONS = ("fp16", "int8", "int8 for tensorrt")
Rebuild = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def error_sub(graph: onnx.ModelProto, shapes: tuple[list[int], list[int]]) -> onnx.NodeProto:
    """The one subtraction of target and reconstruction, both of the given shapes."""
    known = onnx.shape_inference.infer_shapes(graph).graph.value_info
    shape_of = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][1:] for value in known
    }
    wanted = sorted(shapes)
    (found,) = (
        node
        for node in graph.graph.node
        if node.op_type == "Sub" and sorted(shape_of.get(name, []) for name in node.input) == wanted
    )
    return found


@cache  # one export for both precisions
def exported(config: MetalConfig | MetalFeaturesConfig) -> bytes:
    torch.manual_seed(0)
    return onnx_from_model(build_model(config).eval()).SerializeToString()


def converted_rebuild(
    config: MetalConfig | MetalFeaturesConfig,
    shape: list[int],
    precision: str,
    folder: Path,
) -> Rebuild:
    """Target to reconstruction in the graph at `precision`, float32 in and out.

    Args:
        shape: of both, without the batch.
        precision: one of PRECISIONS.
    """
    source = onnx.load_from_string(exported(config))
    save_model(source, folder / "fp32.onnx")
    size = config.image_size
    frames = np.random.default_rng(1).integers(0, 256, (12, size, size, 3), dtype=np.uint8)
    base, _, tensorrt = precision.partition(" ")
    write_precision(folder / "fp32.onnx", folder / "out.onnx", EnginePrecision(base), frames)
    if tensorrt:
        int8_for_tensorrt(folder / "fp32.onnx", folder / "out.onnx")
    sub = error_sub(source, (shape, shape))
    graph = onnx.shape_inference.infer_shapes(onnx.load(folder / "out.onnx"))
    (same,) = (node for node in graph.graph.node if node.name == sub.name)
    # The FP16 graph may have the target twice, as its FP32 nodes and as the others read it.
    targets = sorted({sub.input[1], same.input[1]})
    part = Extractor(graph).extract_model(targets, [same.input[0]])
    kinds = {node.op_type for node in part.graph.node}
    assert ("QuantizeLinear" in kinds) == (base == "int8")
    session = ort.InferenceSession(part.SerializeToString())
    given = {tensor.name: tensor.type == "tensor(float16)" for tensor in session.get_inputs()}
    weights = {tensor.data_type for tensor in part.graph.initializer}
    assert (TensorProto.FLOAT16 in weights) == (precision != "int8")

    def rebuild(target: NDArray[np.float32]) -> NDArray[np.float32]:
        fed = {name: target.astype(np.float16) if half else target for name, half in given.items()}
        (got,) = session.run(None, fed)
        return np.asarray(got, np.float32)

    return rebuild


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("radius", [0, 1])
def test_squares_and_rows(precision: str, radius: int, tmp_path: Path) -> None:
    config = MetalConfig(
        image_size=32, patch_size=8, embedding=16, heads=2, mask=MaskRule.ZEROLEAK, radius=radius,
        shapes=("squares",) if radius else ("squares", "rows"), blocks=2,
    )  # fmt: skip
    rebuild = converted_rebuild(config, [3, 32, 32], precision, tmp_path)
    noise = np.random.default_rng(2)
    image = noise.random((1, 3, 32, 32), dtype=np.float32)
    before = rebuild(image)
    for row in range(GRID):
        for column in range(GRID):
            own = np.s_[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            changed = image.copy()
            changed[own] += noise.uniform(-50, 50, changed[own].shape).astype(np.float32)
            after = rebuild(changed)
            assert np.array_equal(after[own], before[own])
            assert not np.array_equal(after, before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_of_features(precision: str, tmp_path: Path) -> None:
    config = MetalFeaturesConfig(
        image_size=64, grid=GRID, width=16, heads=4, students=False, memory=0, depth=2
    )
    channels = sum(MetalFeatures(config).channels)
    rebuild = converted_rebuild(config, [GRID**2, channels], precision, tmp_path)
    noise, allowed = np.random.default_rng(2), allowed_tokens(GRID, config.radius)
    tokens = noise.normal(size=(1, GRID**2, channels)).astype(np.float32)
    before = rebuild(tokens)
    for query in range(GRID**2):
        changed = tokens.copy()
        changed[:, ~allowed[query]] += noise.uniform(-50, 50, (1, 1, channels))
        after = rebuild(changed)
        assert np.array_equal(after[:, query], before[:, query])
        assert not np.array_equal(after, before)
