"""MACs, bytes and precisions of graphs small enough to count by hand, and of a real network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from metal_edge.errors import BundleError
from metal_edge.export.graph import Graph, read_graph
from metal_edge.export.traffic import layers, traffic

SIDE = 8


def build(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    *,
    opset: int = 20,
    image: tuple[object, ...] = ("N", SIDE, SIDE, 3),
    outputs: tuple[str, ...] = ("anomaly_map", "score"),
) -> Path:
    """image uint8 [N, 8, 8, 3] -> `nodes` -> anomaly_map [N, 8, 8], score [N]."""
    shapes: dict[str, list[object]] = {"anomaly_map": ["N", SIDE, SIDE], "score": ["N"]}
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, list(image))],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name, ["N"]))
            for name in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path)
    return path


def tail(source: str) -> list[onnx.NodeProto]:
    """[N, 1, 8, 8] -> the two results."""
    return [
        helper.make_node("Squeeze", [source, "one"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "last"], ["score"], keepdims=0),
    ]


CONSTANTS = {"one": np.array([1]), "last": np.array([1, 2])}


def convolution(path: Path, channels: int, kernel: int, *, quantized: bool = False) -> Path:
    """Cast, transpose, Conv to `channels`, Relu, Conv to 1."""
    weights = {
        "w1": np.ones((channels, 3, kernel, kernel), np.float32),
        "w2": np.ones((1, channels, 1, 1), np.float32),
    }
    constants: dict[str, np.ndarray] = {**CONSTANTS, **weights}
    pads = [kernel // 2] * 4
    first, second = "nchw", "relu"
    extra: list[onnx.NodeProto] = []
    middle: list[onnx.NodeProto] = []
    names = ["w1", "w2"]
    if quantized:
        constants |= {"scale": np.array(0.1, np.float32), "zero8": np.array(0, np.uint8)}
        constants |= {"zero": np.array(0, np.int8)}
        for name in names:
            constants[name] = constants[name].astype(np.int8)
        extra = [
            helper.make_node("QuantizeLinear", ["nchw", "scale", "zero8"], ["q1"]),
            helper.make_node("DequantizeLinear", ["q1", "scale", "zero8"], ["d1"]),
            helper.make_node("DequantizeLinear", ["w1", "scale", "zero"], ["dw1"]),
            helper.make_node("DequantizeLinear", ["w2", "scale", "zero"], ["dw2"]),
        ]
        middle = [
            helper.make_node("QuantizeLinear", ["relu", "scale", "zero8"], ["q2"]),
            helper.make_node("DequantizeLinear", ["q2", "scale", "zero8"], ["d2"]),
        ]
        first, second, names = "d1", "d2", ["dw1", "dw2"]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        *extra,
        helper.make_node("Conv", [first, names[0]], ["conv"], name="first", pads=pads),
        helper.make_node("Relu", ["conv"], ["relu"]),
        *middle,
        helper.make_node("Conv", [second, names[1]], ["out"], name="second"),
        *tail("out"),
    ]
    return build(path, nodes, constants)


@settings(max_examples=15)
@given(channels=st.integers(1, 9), kernel=st.sampled_from([1, 3, 5]))
def test_a_convolution_by_hand(
    tmp_path_factory: pytest.TempPathFactory, channels: int, kernel: int
) -> None:
    path = tmp_path_factory.mktemp("conv") / "model.onnx"
    found = traffic(read_graph(convolution(path, channels, kernel)))
    pixels = SIDE * SIDE
    first, second = pixels * channels * 3 * kernel**2, pixels * channels
    assert found.macs == {"fp32": first + second}
    assert found.weights == {"float32": 4 * (channels * 3 * kernel**2 + channels)}
    # The image; what Relu leaves, for the second convolution; the map, for the maximum.
    assert found.read == {"float32": 4 * pixels * (channels + 1), "uint8": pixels * 3}
    # What Conv hands to Relu never leaves the kernel.
    assert found.written == {"float32": 4 * (pixels * channels + pixels + 1)}
    assert found.least_bytes == sum(found.weights.values()) + 3 * pixels + 4 * (pixels + 1)
    assert found.total_bytes >= found.least_bytes
    assert found.unknown == ()


def test_what_lies_behind_quantisation_counts_as_bytes(tmp_path: Path) -> None:
    graph = read_graph(convolution(tmp_path / "model.onnx", 4, 3, quantized=True))
    found, pixels = traffic(graph), SIDE * SIDE
    assert [layer.precision for layer in layers(graph)] == ["int8", "int8"]
    assert {(layer.weights, layer.activations) for layer in layers(graph)} == {("int8", ("uint8",))}
    assert found.macs == {"int8": pixels * (4 * 27 + 4)}
    assert found.weights["int8"] == 4 * 27 + 4 + 1  # and one zero point
    assert found.written["uint8"] == pixels * (3 + 4)
    assert found.written["float32"] == 4 * (pixels + 1)


def test_weights_alone_in_int8_are_no_int8_layer(tmp_path: Path) -> None:
    constants = {
        **CONSTANTS,
        "w": np.ones((1, 3, 1, 1), np.int8),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["dw"]),
        helper.make_node("Conv", ["nchw", "dw"], ["out"]),
        *tail("out"),
    ]
    (layer,) = layers(read_graph(build(tmp_path / "model.onnx", nodes, constants)))
    assert layer.precision == "fp32 on int8 weights"


def test_a_tensor_with_two_readers_is_read_twice(tmp_path: Path) -> None:
    """A residual sum over two convolutions: the kernel of the last one adds what it has made."""
    constants = {**CONSTANTS, "w": np.ones((3, 3, 1, 1), np.float32)}
    constants["v"] = np.ones((1, 3, 1, 1), np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "w"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["sum"]),
        helper.make_node("Conv", ["sum", "v"], ["out"]),
        *tail("out"),
    ]
    found, pixels = traffic(read_graph(build(tmp_path / "m.onnx", nodes, constants))), SIDE * SIDE
    assert found.read["float32"] == 4 * pixels * (2 * 3 + 3 + 3 + 1)  # a twice, b, sum, map
    assert found.written["float32"] == 4 * (pixels * (3 + 3 + 3 + 1) + 1)
    assert found.weights == {"float32": 4 * (9 + 3)}  # w once, though two read it


def test_gemm_and_matmul(tmp_path: Path) -> None:
    """[1, 192] x [192, 5], [5, 1] and [64, 5] both transposed, [1, 64] x [64, 64], to a map."""
    constants = {
        **CONSTANTS,
        "flat": np.array([-1, 192]),
        "back": np.array([-1, 1, SIDE, SIDE]),
        "w": np.ones((192, 5), np.float32),
        "turned": np.ones((64, 5), np.float32),
        "m": np.ones((64, 64), np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["row"]),
        helper.make_node("Gemm", ["row", "w"], ["five"], name="plain"),
        helper.make_node("Transpose", ["five"], ["column"], perm=[1, 0]),
        helper.make_node("Gemm", ["column", "turned"], ["many"], name="turned", transA=1, transB=1),
        helper.make_node("MatMul", ["many", "m"], ["again"], name="product"),
        helper.make_node("Reshape", ["again", "back"], ["out"]),
        *tail("out"),
    ]
    found = layers(read_graph(build(tmp_path / "m.onnx", nodes, constants)))
    assert {layer.name: layer.macs for layer in found} == {
        "plain": 192 * 5,
        "turned": 5 * 64,
        "product": 64 * 64,
    }


def test_macs_agree_with_pytorchs_own_counter(tmp_path: Path) -> None:
    """Folding constants may only take products away: those of two constants."""
    torch = pytest.importorskip("torch")
    from metal_edge.export.graph import OPSETS
    from metal_edge.export.onnx_model import OPSET, onnx_from_model, save_model
    from metal_edge.models.metal import MetalConfig
    from metal_edge.models.registry import build_model
    from tools.results.measure import multiply_accumulates

    assert OPSET in OPSETS
    torch.manual_seed(0)
    model = build_model(MetalConfig(image_size=64)).eval()
    save_model(onnx_from_model(model), tmp_path / "model.onnx")
    graph = read_graph(tmp_path / "model.onnx")
    assert graph.batch == "dynamic"
    counted = traffic(graph)
    assert counted.unknown == ()
    wanted = multiply_accumulates(model)
    assert sum(counted.macs.values()) == pytest.approx(wanted, rel=0.02)
    parameters = 4 * sum(p.numel() for p in model.parameters())
    assert parameters <= counted.weights["float32"] <= 1.1 * parameters


def test_unsorted_nodes_are_put_in_order(tmp_path: Path) -> None:
    """ONNX Runtime's FP16 converter leaves such files; ONNX Runtime itself runs them."""
    path = convolution(tmp_path / "model.onnx", 2, 3)
    expected = traffic(read_graph(path))
    model = onnx.load(path)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, path)
    assert traffic(read_graph(path)) == expected


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_graph(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("opset", [11, 21])
def test_a_wrong_opset(tmp_path: Path, opset: int) -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["anomaly_map"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["image"], ["score"], to=TensorProto.FLOAT),
    ]
    text = refused(build(tmp_path / "m.onnx", nodes, {}, opset=opset))
    assert f"opset {opset}" in text
    assert "13 to 20" in text


def test_foreign_graphs(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT)
    score = helper.make_node("ReduceMax", ["float"], ["score"], keepdims=0)
    text = refused(build(tmp_path / "a.onnx", [cast, score], {}, outputs=("score",)))
    assert "no output anomaly_map" in text
    chw = build(tmp_path / "b.onnx", [cast, score], {}, image=("N", 3, 8, 8), outputs=("score",))
    assert "uint8 images [N, H, W, 3]" in refused(chw)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path)


def test_half_a_file(tmp_path: Path) -> None:
    path = convolution(tmp_path / "model.onnx", 4, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "sound ONNX" in refused(path)


def test_nodes_that_wait_for_each_other(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
    ]
    assert "cycle" in refused(build(tmp_path / "m.onnx", nodes, {}))
    lost = [helper.make_node("Identity", ["nowhere"], ["score"])]
    assert "nowhere" in refused(build(tmp_path / "n.onnx", lost, {}, outputs=("score",)))


def test_a_fixed_batch_is_told(tmp_path: Path) -> None:
    constants = {**CONSTANTS, "w": np.ones((1, 3, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "w"], ["out"]),
        *tail("out"),
    ]
    graph: Graph = read_graph(
        build(tmp_path / "m.onnx", nodes, constants, image=(4, SIDE, SIDE, 3))
    )
    assert graph.batch == "4"
    assert graph.tensors["image"].shape == (1, SIDE, SIDE, 3)


def test_an_operator_of_another_domain_is_a_layer_that_nobody_can_count(tmp_path: Path) -> None:
    """An attention plugin: what comes after it has no known shape, and is said to have none."""
    constants = {**CONSTANTS, "w": np.ones((1, 3, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Attend", ["nchw"], ["attended"], name="plugin", domain="some.plugins"),
        helper.make_node("Conv", ["attended", "w"], ["out"], name="after"),
        *tail("out"),
    ]
    path = build(tmp_path / "m.onnx", nodes, constants)
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("some.plugins", 1))
    onnx.save(model, path)
    graph = read_graph(path)
    plugin, after = layers(graph)
    assert (plugin.kind, plugin.macs) == ("some.plugins::Attend", 0)
    assert after.macs == 0
    assert {"attended", "out"} <= set(traffic(graph).unknown)
