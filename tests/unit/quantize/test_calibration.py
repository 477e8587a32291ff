"""Ranges by hand and by law; frames that are refused; layers that cannot have a scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from support.small_graph import small_graph

from metal_edge.cli.int8_build import zero_range_warnings
from metal_edge.errors import DataError
from metal_edge.quantize.calibration import (
    BINS,
    CalibrationMethod,
    Range,
    activation_ranges,
    check_frames,
    entropy_range,
    histogram,
    percentile_range,
)
from metal_edge.quantize.int8 import calibrate
from metal_edge.quantize.layers import block_of, group_by_block, quantisable
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

MINMAX = CalibrationMethod.MINMAX


def test_minmax_ranges_are_what_the_tensors_show(pictures: NDArray[np.uint8]) -> None:
    model = small_graph(gain=2.0, offset=-1.0)
    ranges = activation_ranges(model, quantisable(model), pictures, MINMAX)
    means = pictures.mean(axis=(1, 2, 3)) / 255
    assert ranges["pixels"].low == 0
    assert ranges["pixels"].high == pytest.approx(pictures.max() / 255)
    assert ranges["hidden"].low == pytest.approx(2 * means.min() - 1, rel=1e-4)
    assert ranges["hidden"].high == pytest.approx(max(0, 2 * means.max() - 1), rel=1e-4)
    assert set(ranges) == {"pixels", "hidden", "out"}


def test_every_frame_counts_whatever_the_order(pictures: NDArray[np.uint8]) -> None:
    model = small_graph()
    layers = quantisable(model)
    for method in CalibrationMethod:
        forwards = activation_ranges(model, layers, pictures, method)
        assert activation_ranges(model, layers, pictures[::-1], method) == forwards
        brighter = activation_ranges(model, layers, pictures[:8], method)
        assert brighter["hidden"].high < forwards["hidden"].high


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(1e-3, 1e3))
def test_narrower_methods_stay_within_minmax_and_hold_zero(
    seed: int, centre: float, size: float
) -> None:
    values = (np.random.default_rng(seed).normal(centre, 1, 5000) * size).astype(np.float32)
    span = Range(min(0.0, float(values.min())), max(0.0, float(values.max())))
    counts = histogram(values, span)
    assert counts.sum() == values.size
    for narrow in (percentile_range(counts, span), entropy_range(counts, span)):
        assert span.low <= narrow.low <= 0 <= narrow.high <= span.high
        assert not narrow.zero


def test_an_outlier_is_cut_by_percentile_and_entropy_but_not_by_minmax() -> None:
    values = np.append(np.random.default_rng(0).normal(0, 1, 200_000), 1000.0).astype(np.float32)
    span = Range(float(values.min()), 1000.0)
    counts = np.bincount(
        ((values - span.low) / (span.high - span.low) * BINS).astype(int).clip(0, BINS - 1),
        minlength=BINS,
    )
    assert percentile_range(counts, span).high < 10
    assert entropy_range(counts, span).high < 500


def test_zeros_in_plenty_do_not_make_entropy_clip_the_rest() -> None:
    """An activation that is 0 nine times in ten, and uniform elsewhere, has nothing to clip."""
    random = np.random.default_rng(0)
    values = np.concatenate([np.zeros(90_000), random.uniform(0, 6, 10_000)]).astype(np.float32)
    assert entropy_range(histogram(values, Range(0, 6)), Range(0, 6)).high > 5.8


def test_frames_that_are_refused(pictures: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match="no frame"):
        check_frames(pictures[:0])
    with pytest.raises(DataError, match="7 distinct frames, it needs 8"):
        check_frames(pictures[:7])
    with pytest.raises(DataError, match="1 distinct frames"):
        check_frames(np.repeat(pictures[:1], 20, axis=0))
    with pytest.raises(DataError, match="frame 10 of 10 is a copy of frame 3"):
        check_frames(np.concatenate([pictures[:9], pictures[2:3]]))
    plain = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None, None], (16, 8, 8, 3))
    with pytest.raises(DataError, match="one colour"):
        check_frames(plain)
    assert len(set(check_frames(pictures))) == len(pictures)


def test_a_layer_whose_activations_are_always_zero_stays_fp32(
    pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    source, out = tmp_path / "zero.onnx", tmp_path / "int8.onnx"
    model = small_graph(gain=0.0)
    pruned = next(t for t in model.graph.initializer if t.name == "model.block.1.bias")
    pruned.CopyFrom(numpy_helper.from_array(np.ones(4, np.float32), pruned.name))
    onnx.save(model, source)
    with pytest.raises(DataError, match="no layer that INT8 could cover"):
        calibrate(source, pictures, MINMAX)

    # One more layer, beside the dead one, that has something to say.
    model.graph.node.insert(3, onnx.helper.make_node("Gemm", ["pixels", "w"], ["alive"], "third"))
    model.graph.node.insert(6, onnx.helper.make_node("Add", ["out", "alive"], ["sum"], "sum"))
    next(n for n in model.graph.node if n.name == "error").input[0] = "sum"
    weight = np.full((192, 4), 1 / 192, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, source)
    calibrated = calibrate(source, pictures, MINMAX)
    assert set(calibrated.zero_range) == {"first", "second"}
    (warning,) = zero_range_warnings(calibrated)
    assert "2 layers stay in higher precision" in warning
    assert "first: first" in warning
    assert calibrated.write(out, calibrated.groups) == ["third"]
    with OnnxRuntimeRunner(source) as a, OnnxRuntimeRunner(out) as b:
        for image in pictures:
            expected, got = a.run(image[None])[0], b.run(image[None])[0]
            assert np.isfinite(got.anomaly_map).all()
            assert got.score == pytest.approx(expected.score, abs=0.02)


def test_a_tensor_that_is_not_finite_is_named(pictures: NDArray[np.uint8]) -> None:
    model = small_graph(gain=float("inf"))
    with pytest.raises(DataError, match="hidden is not finite on calibration frame"):
        activation_ranges(model, quantisable(model), pictures, MINMAX)


@pytest.mark.parametrize(
    ("parameter", "block"),
    [
        ("model.backbone.stages.1.0.layers.0.conv.weight", "backbone.stages.1.0"),
        ("model.backbone.stem.conv.weight", "backbone.stem"),
        ("model.context.blocks.0.key_value.bias", "context.blocks.0"),
        ("model.branches.1.blocks.0.mlp.2.bias", "branches.1.blocks.0"),
        ("model.branches.1.embed.0.bias", "branches.1"),
        ("model.context.content.0.bias", "context.content"),
        ("model.students.2.4.bias", "students.2"),
        ("model.decoder.4.weight", "decoder"),
        ("model.memories.2.bank", "memories.2"),
        ("model.whitenings.0.matrix", "whitenings.0"),
        ("model.context.query_position", "context"),
    ],
)
def test_blocks_of_parameters(parameter: str, block: str) -> None:
    assert block_of(parameter) == block


def test_every_layer_is_in_one_block() -> None:
    model = small_graph()
    layers = quantisable(model)
    assert layers == ["first", "second"]
    assert group_by_block(model, layers) == {"block": ("first", "second")}
