"""The plain rounding that tolerances are measured by: it rounds, where it should, as it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from support.small_graph import SIDE, small_graph

from metal_edge.quantize.calibration import CalibrationMethod, Range, activation_ranges
from metal_edge.quantize.int8 import calibrate
from metal_edge.quantize.layers import quantisable
from metal_edge.quantize.rounding import plain_fp16, plain_int8

PIXELS = SIDE * SIDE * 3


def run(model: onnx.ModelProto, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["anomaly_map"], {"image": image[None]})[0]).ravel()


@settings(max_examples=20)
@given(st.floats(0.1, 100), st.integers(1, 255))
def test_fp16_rounds_weights_inputs_and_outputs_of_layers(gain: float, level: int) -> None:
    """One grey level everywhere: every product and rounding can be done by hand."""
    model = small_graph(gain=gain)
    image = np.full((SIDE, SIDE, 3), level, np.uint8)
    got = run(plain_fp16(model, []), image)
    pixel = np.float32(np.float16(np.float32(level) * np.float32(1 / 255)))
    weight = np.float32(np.float16(np.float32(gain / PIXELS)))
    hidden = np.float32(np.float16(PIXELS * pixel * weight))
    # A sum of 192 products, in any order, may end on the neighbouring FP16 value.
    assert got == pytest.approx(abs(float(hidden) - 0.25), abs=float(hidden) * 2**-10 + 1e-6)
    exact = run(model, image)
    assert run(plain_fp16(model, ["first", "second"]), image) == pytest.approx(exact, abs=0)


def test_casts_there_and_back_are_not_optimised_away() -> None:
    image = np.full((SIDE, SIDE, 3), 77, np.uint8)
    model = small_graph(gain=1.0)
    assert np.abs(run(plain_fp16(model, []), image) - run(model, image)).max() > 1e-6


def test_fp16_weights_are_fp16_values_but_in_islands() -> None:
    model = small_graph(gain=1.0)
    exact = np.float32(1 / PIXELS)
    for islands, wanted in (([], np.float32(np.float16(exact))), (["first"], exact)):
        graph = plain_fp16(model, islands).graph
        weight = next(t for t in graph.initializer if t.name == "model.block.0.weight")
        assert (numpy_helper.to_array(weight) == wanted).all()


def test_int8_rounds_activations_to_the_grid_of_their_range(
    pictures: NDArray[np.uint8],
) -> None:
    model = small_graph(gain=2.0, offset=-1.0)
    layers = quantisable(model)
    ranges = activation_ranges(model, layers, pictures, CalibrationMethod.MINMAX)
    span = ranges["out"]
    scale = (span.high - span.low) / 255
    for image in pictures:
        rounded, exact = run(plain_int8(model, layers, ranges), image), run(model, image)
        # The layers' outputs lie on the grid; what follows is the same arithmetic.
        steps = np.array([(0.25 - rounded) / scale, (0.25 + rounded) / scale])
        assert np.abs(steps - np.round(steps)).min(axis=0).max() < 1e-3
        assert np.abs(rounded - exact).max() < 6 * scale


def test_int8_weights_are_rounded_per_output_channel() -> None:
    model = small_graph()
    weight = next(t for t in model.graph.initializer if t.name == "model.block.0.weight")
    values = np.random.default_rng(0).normal(0, 1, (PIXELS, 4)).astype(np.float32)
    values[:, 1] *= 100
    values[:, 2] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    ranges = {name: Range(-1, 1) for name in ("pixels", "hidden", "out")}
    rounded = plain_int8(model, ["first"], ranges)
    got = numpy_helper.to_array(
        next(t for t in rounded.graph.initializer if t.name == "model.block.0.weight")
    )
    for channel in range(4):
        step = np.abs(values[:, channel]).max() / 127
        assert np.abs(got[:, channel] - values[:, channel]).max() <= step / 2 * 1.0001 + 1e-12
        assert len(np.unique(got[:, channel])) <= 255
    assert not got[:, 2].any()


def test_what_is_outside_the_range_saturates() -> None:
    model = small_graph()
    ranges = {"pixels": Range(0, 0.5), "hidden": Range(0, 2), "out": Range(0, 2)}
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    got = run(plain_int8(model, ["first", "second"], ranges), white)
    assert got == pytest.approx(0.25, abs=0.02)  # 0.5, less the target of 0.25


def test_the_quantiser_and_the_plain_rounding_agree(
    pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Two programs by different means: their errors are of one size."""
    source, out = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    onnx.save(small_graph(gain=3.0, offset=-0.5), source)
    calibrated = calibrate(source, pictures, CalibrationMethod.MINMAX)
    layers = calibrated.write(out, calibrated.groups)
    plain = plain_int8(calibrated.model, layers, calibrated.ranges)
    written = onnx.load(out)
    exact = np.array([run(onnx.load(source), image) for image in pictures])
    one = np.abs(np.array([run(written, image) for image in pictures]) - exact).max()
    other = np.abs(np.array([run(plain, image) for image in pictures]) - exact).max()
    assert one > 0
    assert 0.5 < one / other < 2
