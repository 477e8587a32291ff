"""The gate: what may pass, what is refused, and that tolerances come from plain rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from metal_edge.export.onnx_model import probe_images
from metal_edge.export.parity import (
    FACTOR,
    FLOOR,
    Comparison,
    Deviation,
    GoldenCandidate,
    ParityError,
    clear_candidates,
    compare,
    decision_margin,
    require_parity,
    require_same_verdicts,
)
from metal_edge.export.precision import write_fp16, write_fp32, write_int8
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.int8 import calibrate

SIZE = 32
Converted = dict[str, tuple[Path, Path | None]]


@pytest.fixture(scope="module")
def converted(
    fp32: Path, frames: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    """Precision -> the graph, and the plainly rounded one."""
    folder = tmp_path_factory.mktemp("converted")
    calibrated = calibrate(fp32, frames, CalibrationMethod.MINMAX)
    conversions = {
        "fp32": write_fp32(fp32, folder / "fp32.onnx"),
        "fp16": write_fp16(fp32, folder / "fp16.onnx"),
        "int8": write_int8(
            calibrated,
            folder / "int8.onnx",
            calibrated.groups,
            method=CalibrationMethod.MINMAX,
            frames=len(frames),
        ),
    }
    made: Converted = {}
    for name, conversion in conversions.items():
        plain = None
        if conversion.baseline is not None:
            plain = folder / f"{name}-plain.onnx"
            onnx.save(conversion.baseline, plain)
        made[name] = (folder / f"{name}.onnx", plain)
    return made


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_honest_conversion_passes_by_far(
    fp32: Path, frames: NDArray[np.uint8], converted: Converted, precision: str
) -> None:
    graph, plain = converted[precision]
    held_out = compare(fp32, graph, plain, frames)
    adversarial = compare(fp32, graph, plain, probe_images(SIZE))
    parity = require_parity(precision, held_out, adversarial)
    assert parity.images == len(frames)
    assert parity.held_out.map_error <= 0.8 * parity.held_out.map_tolerance
    assert parity.adversarial.map_error <= 0.8 * parity.adversarial.map_tolerance
    assert (parity.held_out.map_error > 0) is (precision != "fp32")


def spoilt(path: Path, folder: Path, factor: float) -> Path:
    """The graph with its largest weight, or that weight's scales, multiplied."""
    model = onnx.load(path)
    scales = [t for t in model.graph.initializer if t.name.endswith("_scale") and t.dims == [192]]
    largest = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    for tensor in scales or [largest]:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values * values.dtype.type(factor), tensor.name))
    broken = folder / "broken.onnx"
    onnx.save(model, broken)
    return broken


@pytest.mark.parametrize("fault", [("fp32", 1.05), ("fp16", 1.05), ("int8", 1.5)])
def test_a_wrong_scale_is_refused(
    fp32: Path,
    frames: NDArray[np.uint8],
    converted: Converted,
    tmp_path: Path,
    fault: tuple[str, float],
) -> None:
    """The decoder's last layer with a wrong scale: the kind of fault an export tool makes."""
    precision, factor = fault
    graph, plain = converted[precision]
    broken = spoilt(graph, tmp_path, factor)
    held_out = compare(fp32, broken, plain, frames)
    adversarial = compare(fp32, broken, plain, probe_images(SIZE))
    with pytest.raises(ParityError, match=f"{precision} differs from fp32 on"):
        require_parity(precision, held_out, adversarial)


def test_a_graph_that_yields_nan_is_refused(
    fp32: Path, frames: NDArray[np.uint8], converted: Converted, tmp_path: Path
) -> None:
    broken = spoilt(fp32, tmp_path, float("nan"))
    found = compare(fp32, broken, converted["int8"][1], frames[:2])
    with pytest.raises(ParityError):
        require_parity("int8", found, found)


def comparison(errors: list[float], plain: list[float], correlation: float = 1.0) -> Comparison:
    """Scores of 1; map and score errors alike."""
    one, off = np.ones(len(errors)), np.array(errors)
    base = np.array(plain)
    return Comparison(one, one + off, off, off, base, base, correlation)


@given(
    st.lists(st.tuples(st.floats(0, 0.04), st.floats(0, 0.04)), min_size=1, max_size=20),
)
def test_the_worst_image_against_twice_the_worst_plain_one(
    pairs: list[tuple[float, float]],
) -> None:
    errors, plain = [a for a, _ in pairs], [b for _, b in pairs]
    deviation = Deviation.of(comparison(errors, plain))
    assert deviation.holds is (max(errors) <= max(FACTOR * max(plain), FLOOR))


def test_either_set_of_images_can_refuse() -> None:
    good, bad = comparison([0.01], [0.01]), comparison([0.01], [0.001])
    require_parity("int8", good, good)
    with pytest.raises(ParityError, match="1 held-out images"):
        require_parity("int8", bad, good)
    with pytest.raises(ParityError, match="1 adversarial images"):
        require_parity("int8", good, bad)


def test_what_a_model_cannot_stand_is_refused_though_rounding_explains_it() -> None:
    rough = comparison([0.3], [0.3])
    with pytest.raises(ParityError, match="median score change"):
        require_parity("int8", rough, comparison([0.0], [0.0]))
    loose = comparison([0.1], [0.1], correlation=0.9)
    with pytest.raises(ParityError, match="map correlation"):
        require_parity("int8", loose, loose)
    unknown = replace(loose, correlation=float("nan"))
    with pytest.raises(ParityError, match="map correlation"):
        require_parity("int8", unknown, loose)


def candidate(source: float, converted: float, good: bool = True) -> GoldenCandidate:
    image = np.zeros((2, 2, 3), np.uint8)
    return GoldenCandidate(image, good, source, converted, f"part-{source}.png")


def test_golden_images_are_chosen_by_fp32_alone() -> None:
    near, clear, other = candidate(0.96, 5.0), candidate(0.5, 0.99), candidate(1.2, 1.0)
    assert clear_candidates([near, clear, other], 1.0, 0.05) == [clear, other]


def test_every_golden_verdict_must_be_that_of_fp32() -> None:
    """Each graph at its own threshold: a common factor changes nothing."""
    doubled = [candidate(0.5, 1.0), candidate(1.5, 3.0, good=False)]
    require_same_verdicts("int8", doubled, 1.0, 2.0)
    with pytest.raises(ParityError, match=r"part-0.5.png passes in fp32 .* but is rejected"):
        require_same_verdicts("int8", [candidate(0.5, 2.0)], 1.0, 2.0)
    with pytest.raises(ParityError, match=r"part-1.5.png is rejected in fp32 .* but passes"):
        require_same_verdicts("int8", [candidate(1.5, 1.9)], 1.0, 2.0)
    with pytest.raises(ParityError):
        require_same_verdicts("int8", [candidate(0.5, float("nan"))], 1.0, 2.0)


def test_the_decision_margin_by_hand() -> None:
    margin = decision_margin([1.0, 1.8, 2.0, 3.0], 2.0)
    assert margin.passing == pytest.approx(0.1)
    assert margin.rejected == 0.0
    assert decision_margin([1.0], 2.0).as_dict() == {"passing": 0.5, "rejected": None}
    assert decision_margin([], 2.0).as_dict() == {"passing": None, "rejected": None}
