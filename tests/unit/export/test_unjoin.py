"""What is joined only to be split again is read as it was before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from metal_edge.export.unjoin import unjoin


def graph(sizes: list[int], axis: int = -1, outputs: tuple[str, ...] = ("y", "z")) -> ModelProto:
    """[B, 8, 3] and [B, 8, 5] joined, split into `sizes`, then each doubled."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Concat", ["a", "b"], ["joined"], axis=-1),
        node("Split", ["joined", "sizes"], ["p", "q"], axis=axis),
        node("Add", ["p", "p"], ["y"]),
        node("Add", ["q", "q"], ["z"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [value(name, TensorProto.FLOAT, ["batch", 8, n]) for name, n in (("a", 3), ("b", 5))],
        [value(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.array(sizes), "sizes")],
    )
    inferred = onnx.shape_inference.infer_shapes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    return ModelProto.FromString(inferred.SerializeToString())


def kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: ModelProto, outputs: list[str]) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2, 8, n)).astype(np.float32) for n in (3, 5))
    return session.run(outputs, {"a": a, "b": b})


@pytest.mark.parametrize("axis", [-1, 2])
def test_the_parts_are_read_directly_and_are_the_same(axis: int) -> None:
    before = graph([3, 5], axis)
    after = ModelProto.FromString(before.SerializeToString())
    assert unjoin(after) == 1
    onnx.checker.check_model(after, full_check=True)
    assert kinds(after) == ["Add", "Add"]
    assert not after.graph.initializer
    for got, wanted in zip(run(after, ["y", "z"]), run(before, ["y", "z"]), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: graph([5, 3]), id="other parts"),
        pytest.param(lambda: graph([3, 5], axis=1), id="another axis"),
        pytest.param(lambda: graph([3, 5], outputs=("y", "z", "q")), id="a part is a result"),
    ],
)
def test_other_splits_stay(other: Callable[[], ModelProto]) -> None:
    before = other()
    after = ModelProto.FromString(before.SerializeToString())
    assert unjoin(after) == 0
    assert after == before


def test_a_join_that_something_else_reads_stays() -> None:
    model = graph([3, 5], outputs=("y", "z", "joined"))
    assert unjoin(model) == 1
    assert kinds(model) == ["Concat", "Add", "Add"]
