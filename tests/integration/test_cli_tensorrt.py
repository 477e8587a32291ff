"""`build-engine RUN --backend tensorrt`: the precision from the run to the builder, with stand-ins
for TensorRT and the GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from support.cli import Call, Trained
from support.tensorrt_machine import Machine

from metal_edge.bundle import Bundle

HALF, INT8, UINT8 = (getattr(onnx.TensorProto, name) for name in ("FLOAT16", "INT8", "UINT8"))
# Types of constants that the graph must have, and those that it must not have.
STORED = {"fp16": ({HALF}, {INT8, UINT8}), "int8": ({HALF, INT8}, {UINT8})}


@pytest.mark.parametrize("precision", STORED)
def test_what_was_asked_for_reaches_the_builder(
    trained: Trained, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    machine = Machine(tmp_path / "plans", monkeypatch)
    options = ("--attention", "native", "--workspace", 64, "--timing-cache", tmp_path / "timings")
    quick = ("--no-sweep",) if precision == "int8" else ()
    build = ("build-engine", trained.run, "--backend", "tensorrt", "--precision", precision)
    built = call(*build, *options, *quick, "-o", tmp_path / "out", "--json")
    assert built.code == 0, built.err
    (asked,) = machine.trt.builds
    assert (asked["workspace"], asked["timings"]) == (64 << 20, [b""])
    assert (tmp_path / "timings").is_file()
    bundle = Bundle.open(tmp_path / "out")
    assert (bundle.manifest.backend, bundle.manifest.precision) == ("tensorrt", precision)
    plan = built.json["plan"]
    assert (plan["precision"], plan["onnx_sha256"]) == (
        precision,
        bundle.manifest.files["model.onnx"].sha256,
    )
    graph = onnx.load(bundle.model_path).graph
    kinds = {constant.data_type for constant in graph.initializer}
    wanted, refused = STORED[precision]
    assert wanted <= kinds
    assert not refused & kinds
    machine.check_released()
