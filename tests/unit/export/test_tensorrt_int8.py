"""The INT8 graph of a bundle for TensorRT, made from the one for ONNX Runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from metal_edge.export.tensorrt_int8 import int8_for_tensorrt
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.int8 import calibrate
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


def test_uint8_is_only_the_picture_and_scores_stay(
    fp32: Path, frames: NDArray[np.uint8], tmp_path: Path
) -> None:
    source, staged = tmp_path / "fp32.onnx", tmp_path / ".int8.onnx"
    shutil.copyfile(fp32, source)
    calibrated = calibrate(source, frames, CalibrationMethod.MINMAX)
    layers = calibrated.write(staged, calibrated.groups)
    before = staged.read_bytes()

    notes = int8_for_tensorrt(source, staged)
    assert notes["quantized_layers"] == len(layers) > 0
    assert staged.read_bytes() != before
    assert {p.name for p in tmp_path.iterdir()} == {source.name, staged.name}
    kinds = {i.data_type for i in onnx.load(staged).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.UINT8 not in kinds, "TensorRT refuses uint8 zero points"
    with OnnxRuntimeRunner(source) as reference, OnnxRuntimeRunner(staged) as runner:
        for image in frames[:4]:
            expected = reference.run(image[None])[0].anomaly_map
            got = runner.run(image[None])[0].anomaly_map
            assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.95
