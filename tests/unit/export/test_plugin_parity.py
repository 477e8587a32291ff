"""The gate of the plugin's INT8 attention: what passes, what is refused, what is no candidate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from metal_edge.export.onnx_model import onnx_from_model, probe_images, save_model
from metal_edge.export.parity import FACTOR, GoldenCandidate
from metal_edge.export.plugin_parity import Trial, judge_int8_attention
from metal_edge.export.precision import write_int8
from metal_edge.export.tensorrt_int8 import int8_for_tensorrt
from metal_edge.models.metal import Metal, MetalConfig
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.int8 import calibrate
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

THRESHOLD = 0.5


@pytest.fixture(scope="module")
def fitted(frames: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A network with heads of 16, fitted to the frames, in INT8 for TensorRT."""
    torch.manual_seed(0)
    hidden = {"square_hidden": 16, "stripe_hidden": 16, "decoder_hidden": (32,)}
    sizes = {"image_size": 32, "patch_size": 8, "embedding": 32, "heads": 2, "blur_sigma": 2.0}
    model = Metal(MetalConfig.model_validate({**sizes, **hidden}))
    image = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        (model(image) - image).abs().mean().backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("plugin")
    source, staged, plain = (folder / f"{n}.onnx" for n in ("fp32", "int8", "plain"))
    save_model(onnx_from_model(model.eval()), source)
    calibrated = calibrate(source, frames, CalibrationMethod.MINMAX)
    conversion = write_int8(
        calibrated,
        staged,
        calibrated.groups,
        method=CalibrationMethod.MINMAX,
        frames=len(frames),
        symmetric=True,
    )
    int8_for_tensorrt(source, staged)
    assert conversion.baseline is not None
    onnx.save(conversion.baseline, plain)
    with OnnxRuntimeRunner(staged) as runner:
        scores = [runner.run(frame[None])[0].score for frame in frames]
    golden = [GoldenCandidate(frames[0], True, scores[0], scores[0], "first")]
    tolerance = 0.02 * scores[0]
    return Trial(source, staged, plain, frames, probe_images(32), golden, 2 * scores[0], tolerance)


def changed(trial: Trial, folder: Path, change: Callable[[dict[str, float]], None]) -> Trial:
    """The same with other ranges for the plugin in the graph's metadata."""
    model = onnx.load(trial.converted)
    (entry,) = model.metadata_props
    ranges = json.loads(entry.value)
    change(ranges)
    entry.value = json.dumps(ranges)
    onnx.save(model, folder / "changed.onnx")
    return replace(trial, converted=folder / "changed.onnx")


def test_an_honest_graph_passes_and_is_another_than_the_bundles(fitted: Trial) -> None:
    seen: list[tuple[int, int]] = []
    found = judge_int8_attention(fitted, lambda *done: seen.append(done))
    assert found is not None
    assert json.loads(json.dumps(found)) == found
    assert (found["attentions"], found["refused"]) == (2, None), found
    assert 0 < found["worst_golden_difference"] <= fitted.tolerance
    for name in ("held_out", "adversarial"):
        deviation = found["parity"][name]
        assert 0 < deviation["map_error"] <= deviation["map_tolerance"]
    assert found["parity"]["tolerance"].startswith(f"{FACTOR:g} x")
    assert seen[-1] == (len(fitted.held_out), len(fitted.held_out))


@pytest.mark.parametrize("factor", [1 / 16, 16.0])
def test_ranges_that_are_wrong_for_attention_are_refused(
    fitted: Trial, tmp_path: Path, factor: float
) -> None:
    """Clipped, or a handful of steps: the graph of the bundle, with native attention, is right."""

    def spoil(ranges: dict[str, float]) -> None:
        for name in ranges:
            ranges[name] *= factor

    found = judge_int8_attention(changed(fitted, tmp_path, spoil))
    assert found is not None
    assert "int8 with the plugin's attention differs from fp32" in found["refused"]
    assert "parity" not in found


@pytest.mark.parametrize("spoil", ["score", "side"])
def test_golden_images_must_score_as_stored(fitted: Trial, spoil: str) -> None:
    (golden,) = fitted.golden
    if spoil == "score":
        off = replace(golden, converted=golden.converted + 2 * fitted.tolerance)
        trial = replace(fitted, golden=[golden, off], threshold=9.0)
    else:
        with_it = judge_int8_attention(fitted)
        assert with_it is not None
        trial = replace(fitted, threshold=golden.converted, golden=[golden])
        low = replace(golden, converted=golden.converted * 0.999)
        high = replace(golden, converted=golden.converted * 1.001)
        trial = replace(trial, golden=[low, high])  # one of them is on the other side
    found = judge_int8_attention(trial)
    assert found is not None
    assert "first scores" in found["refused"]


def test_without_ranges_there_is_no_int8_attention(fitted: Trial, tmp_path: Path) -> None:
    assert judge_int8_attention(changed(fitted, tmp_path, dict.clear)) is None
    assert judge_int8_attention(replace(fitted, converted=fitted.source)) is None
