"""From a trained run to a bundle for TensorRT and its plan; TensorRT and the GPU are stand-ins."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from support.cli import Call, Trained, listing
from support.tensorrt_machine import Machine

from metal_edge.bundle import Bundle
from metal_edge.runtime.load import check_golden, load_runner


def test_int8_from_a_run(
    trained: Trained, own_run: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "plans", monkeypatch)
    out = tmp_path / "bundle"
    before = listing(own_run).keys()
    built = call(
        *("build-engine", own_run, "--precision", "int8", "--no-sweep", "-o", out, "--json")
    )
    assert built.code == 0, built.err
    assert built.json["backend"] == "tensorrt"
    assert built.json["plan"]["fresh"] is True
    assert listing(own_run).keys() - before <= {"model.onnx", "model.onnx.source"}

    bundle = Bundle.open(out)
    assert bundle.manifest.backend == "tensorrt"
    assert bundle.digest == built.json["sha256"]
    model = onnx.load(bundle.model_path)
    uint8 = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.UINT8}
    assert not uint8, "TensorRT refuses uint8 zero points"
    with load_runner(bundle) as runner:
        assert check_golden(bundle, runner).images >= 2
    machine.check_released()
