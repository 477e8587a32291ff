"""What the FP16 conversion makes of the casts that other versions of ONNX Runtime add."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from metal_edge.quantize.fp16 import _merge_repeated


def test_casts_added_once_per_reader_become_one(tmp_path: Path) -> None:
    """As ONNX Runtime 1.22 to 1.31 leave them: two nodes of one name, both with one output."""

    def cast() -> onnx.NodeProto:
        return helper.make_node("Cast", ["x"], ["x_cast"], "x_cast_node", to=TensorProto.FLOAT)

    def shape() -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info("x_cast", TensorProto.FLOAT, [2])

    readers = [helper.make_node(kind, ["x_cast"], [kind], kind) for kind in ("Neg", "Abs")]
    nodes = [*readers, cast(), cast(), helper.make_node("Sub", ["Neg", "Abs"], ["y"], "y")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "two readers", [x], [y], value_info=[shape(), shape()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    _merge_repeated(model)
    assert len(model.graph.value_info) == 1
    onnx.save(model, tmp_path / "merged.onnx")
    session = ort.InferenceSession(str(tmp_path / "merged.onnx"))
    got = session.run(None, {"x": np.array([1, -2], np.float16)})[0]
    np.testing.assert_array_equal(got, np.array([-2, 0], np.float32))
