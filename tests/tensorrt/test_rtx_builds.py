"""TensorRT-RTX parses and builds what we deploy, and refuses what it should, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from support.tensorrt_graphs import Graphs, pictures

from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner
from tools.tensorrt.rtx import Attempt, build
from tools.tensorrt.wheels import UnobtainableError


def attempt(graph: Path) -> Attempt:
    try:
        return build(graph)
    except UnobtainableError as error:
        pytest.skip(str(error))


def written(model: ModelProto, folder: Path) -> Path:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8_in_fp32"])
def test_every_model_builds_in_every_precision(graphs: Graphs, precision: str) -> None:
    done = attempt(getattr(graphs, precision))
    assert done.built, done.errors
    assert not done.errors
    size = graphs.size
    assert done.inputs == {"image": ("UINT8", [-1, size, size, 3])}
    assert done.outputs == {
        "anomaly_map": ("FLOAT", [-1, size, size]),
        "score": ("FLOAT", [-1]),
    }
    print(f"{precision}: {done.layers} layers, {done.engine_bytes / 1e6:.1f} MB, {done.seconds} s")


def test_int8_for_tensorrt_says_what_fp32_says(
    graphs: Graphs, record_property: Callable[[str, object], None]
) -> None:
    """Within the tolerances of ONNX Runtime's INT8 graph, on pictures that nothing was fitted to.

    A signed range loses one bit where values have one sign, so at most twice its error.
    """
    images = pictures(3, graphs.size, seed=1)

    def outputs(path: Path) -> tuple[np.ndarray, np.ndarray]:
        with OnnxRuntimeRunner(path) as runner:
            found = [runner.run(image[None])[0] for image in images]
        return np.stack([f.anomaly_map for f in found]), np.array([f.score for f in found])

    def correlation(found: np.ndarray) -> float:
        return float(np.corrcoef(found.ravel(), maps.ravel())[0, 1])

    maps, scores = outputs(graphs.fp32)
    plain, _ = outputs(graphs.onnxruntime)
    unsigned = np.square(plain - maps).mean() ** 0.5
    row = [correlation(plain)]
    for path in (graphs.int8_in_fp32, graphs.int8):
        got, score = outputs(path)
        row.append(correlation(got))
        assert row[-1] >= 0.95, path
        assert np.median(np.abs(score / scores - 1.0)) <= 0.25, path
        assert np.square(got - maps).mean() ** 0.5 <= 2.0 * unsigned + 1e-3 * maps.std(), path
    cells = " | ".join(f"{value:.4f}" for value in row)
    record_property("correlations", f"| `{graphs.kind}` | {cells} |")


def test_the_memory_is_searched_by_integer_products(graphs: Graphs) -> None:
    """Explicit Q/DQ on both sides of the product whose largest value names a stored token."""
    model = onnx.load(graphs.int8)
    producer = {out: node for node in model.graph.node for out in node.output}
    constants = {t.name: t for t in model.graph.initializer}

    def product_behind(node: NodeProto) -> NodeProto:
        """Not one that only enlarges the scores of a small map, by a constant on its left."""
        found = node.op_type in {"MatMul", "Gemm"} and node.input[0] in producer
        return node if found else product_behind(above(node))

    def above(node: NodeProto) -> NodeProto:
        return producer[next(name for name in node.input if name in producer)]

    products = [product_behind(n) for n in model.graph.node if n.op_type == "ArgMax"]
    assert bool(products) == (graphs.kind == "metal-features")
    for product in products:
        activation, bank = (producer[name] for name in product.input[:2])
        assert (activation.op_type, bank.op_type) == ("DequantizeLinear",) * 2
        assert above(activation).op_type == "QuantizeLinear"
        assert constants[bank.input[0]].data_type == TensorProto.INT8


def test_the_graph_for_onnxruntime_is_refused_for_its_unsigned_activations(tiny: Graphs) -> None:
    done = attempt(tiny.onnxruntime)
    assert not done.parsed
    assert "DequantizeLinear" in done.errors[0]


def test_a_zero_point_other_than_0_is_refused_by_name(tiny: Graphs, tmp_path: Path) -> None:
    model = onnx.load(tiny.int8)
    zero = next(t for t in model.graph.initializer if t.name.endswith("_zero_point"))
    values = numpy_helper.to_array(zero) + np.int8(1)
    zero.CopyFrom(numpy_helper.from_array(values.astype(np.int8), zero.name))
    done = attempt(written(model, tmp_path))
    assert not done.parsed
    assert "zero" in done.errors[0].lower()
    readers = [node.name for node in model.graph.node if zero.name in node.input]
    assert any(name in done.errors[0] for name in readers)


def test_a_truncated_file_is_refused(tiny: Graphs, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    content = tiny.fp16.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    done = attempt(path)
    assert not done.parsed
    assert done.errors


def graph_of(node: Any, kinds: list[int], *, domain: str = "") -> ModelProto:
    """One node over [batch, 4] inputs of these types; the output is of the first."""
    names = [f"x{index}" for index in range(len(kinds))]
    inputs = [
        helper.make_tensor_value_info(n, kind, ["batch", 4])
        for n, kind in zip(names, kinds, strict=True)
    ]
    output = helper.make_tensor_value_info("y", kinds[0], ["batch", 4])
    graph = helper.make_graph([node], "case", inputs, [output])
    opsets = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("second", [TensorProto.FLOAT16, TensorProto.FLOAT])
def test_an_addition_of_two_types_is_refused(second: int, tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x0", "x1"], ["y"], name="sum")
    done = attempt(written(graph_of(node, [TensorProto.FLOAT16, second]), tmp_path))
    assert done.built == (second == TensorProto.FLOAT16)
    if not done.built:
        assert "sum" in done.errors[0]


def test_a_node_of_an_unknown_plugin_is_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchPlugin", ["x0"], ["y"], name="mystery", domain="metal_edge")
    model = graph_of(node, [TensorProto.FLOAT16], domain="metal_edge")
    done = attempt(written(model, tmp_path))
    assert not done.built
    assert "NoSuchPlugin" in " ".join(done.errors)


def test_pixels_must_be_cast_before_anything_else(tmp_path: Path) -> None:
    """Why the models make pixels float first: TensorRT computes nothing with uint8."""
    node = helper.make_node("Transpose", ["x0"], ["y"], name="turn", perm=[0, 1])
    done = attempt(written(graph_of(node, [TensorProto.UINT8]), tmp_path))
    assert not done.built
    assert "UInt8" in " ".join(done.errors)


def test_a_process_that_dies_is_told_from_a_refused_graph(tmp_path: Path) -> None:
    done = attempt(tmp_path / "missing.onnx")
    assert done.aborted
    assert "missing.onnx" in done.errors[-1]
