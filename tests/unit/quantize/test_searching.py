"""INT8 finds remembered tokens by integer products and judges by exact distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from metal_edge.export.onnx_model import check_parity, onnx_from_model, probe_images
from metal_edge.models.features import MetalFeatures, MetalFeaturesConfig
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.int8 import Calibrated, calibrate
from metal_edge.quantize.layers import choosing_products
from metal_edge.quantize.rounding import plain_int8
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

SIZE, MEMORY = 64, 700
MEMORIES = ["memories.0", "memories.1", "memories.2"]


def pictures(count: int, seed: int) -> NDArray[np.uint8]:
    """Random coarse pictures, uint8 [count, SIZE, SIZE, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)


class Case:
    """A fitted model's graph in FP32 and in INT8."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        config = MetalFeaturesConfig(image_size=SIZE, grid=4, width=16, heads=4, memory=MEMORY)
        model = MetalFeatures(config).eval()
        model.load_pretrained()
        stored = model.precompute(torch.from_numpy(pictures(64, 0)))
        model.fit_inputs(stored)
        model.fit_errors(stored)
        self.model = model
        self.fp32, self.int8 = folder / "fp32.onnx", folder / "int8.onnx"
        self.source = onnx_from_model(model)
        onnx.save(self.source, self.fp32)
        self.calibrated: Calibrated = calibrate(
            self.fp32, pictures(12, 0), CalibrationMethod.MINMAX
        )
        self.layers = self.calibrated.write(self.int8, self.calibrated.groups)
        self.searches = [n for n in self.source.graph.node if n.name in self.names]

    @property
    def names(self) -> list[str]:
        return choosing_products(self.source)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("searching"))


def seen(model: ModelProto, names: list[str], image: NDArray[np.uint8]) -> list[NDArray]:
    """Values of inner tensors."""
    model = ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, {"image": image[None]})


def difference_of(case: Case, model: ModelProto, search: NodeProto) -> NodeProto:
    """The subtraction of the found token, from the token that it is compared with."""
    bank = search.input[1]
    (gather,) = (n for n in case.source.graph.node if n.op_type == "Gather" and n.input[0] == bank)
    (found,) = (
        n for n in model.graph.node if n.op_type == "Sub" and n.input[1] == gather.output[0]
    )
    return found


def test_every_memory_is_a_block_of_its_own(case: Case) -> None:
    assert len(case.names) == len(MEMORIES)
    blocks = {block: names for block, names in case.calibrated.groups.items() if "mem" in block}
    assert blocks == {block: (name,) for block, name in zip(MEMORIES, case.names, strict=True)}
    assert set(case.names) <= set(case.layers)


def test_a_deep_level_is_searched_at_its_own_places(case: Case) -> None:
    """And PyTorch's model, which knows nothing of it, is met on black, white, noise and checks."""
    queries = [search.input[0] for search in case.searches]
    found = seen(case.source, queries, pictures(1, seed=7)[0])
    # 4 x 4 tokens of the shallow depths; the deepest level has 2 x 2 places of its own
    assert [len(tokens) for tokens in found] == [16, 16, 4]
    assert check_parity(case.model, case.fp32, probe_images(SIZE)) < 1e-5


def test_the_products_are_integer_ones_whose_results_are_not_rounded(
    case: Case, tmp_path: Path
) -> None:
    """As ONNX Runtime really computes them, after its own fusions."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(case.int8), options, providers=["CPUExecutionProvider"])
    fused = onnx.load(tmp_path / "fused.onnx").graph
    searches = [node for node in fused.node if node.name in case.names]
    assert [node.op_type for node in searches] == ["QGemm"] * len(MEMORIES)
    assert all(len(node.input) < 8 for node in searches), "no scale of a result"
    banks = {t.name: t for t in fused.initializer if MEMORY in t.dims[:1] and len(t.dims) == 2}
    assert {t.data_type for t in banks.values()} == {TensorProto.INT8}
    readers = {node.op_type for node in fused.node if banks.keys() & set(node.input)}
    assert readers == {"QGemm", "Gather"}, "only tokens that were found are brought back"


def test_a_memory_is_stored_once_and_in_int8(case: Case) -> None:
    stored = [t for t in onnx.load(case.int8).graph.initializer if MEMORY in t.dims]
    assert [t.data_type for t in stored if len(t.dims) == 2] == [TensorProto.INT8] * len(MEMORIES)


def test_of_biases_no_zero_points_are_stored(case: Case) -> None:
    model = onnx.load(case.int8)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    biases = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and kinds.get(node.input[0]) == TensorProto.INT32
    ]
    assert biases
    assert {len(node.input) for node in biases} == {2}
    read = {name for node in model.graph.node for name in node.input}
    assert set(kinds) <= read, "nothing is stored that nobody reads"


@pytest.mark.parametrize("strange", [False, True])
def test_no_distance_is_below_that_to_the_nearest_stored_token(case: Case, strange: bool) -> None:
    """Nor far above it, where the picture is of the kind that calibration saw."""
    images = probe_images(SIZE) if strange else pictures(6, seed=7)
    int8 = onnx.load(case.int8)
    constants = {t.name: numpy_helper.to_array(t) for t in int8.graph.initializer}
    for image in images:
        for search in case.searches:
            bank = search.input[1]
            tokens = constants[f"{bank}_quantized"] * constants[f"{bank}_scale"][:, None]
            subtraction = difference_of(case, int8, search)
            x, difference = seen(int8, [subtraction.input[0], subtraction.output[0]], image)
            got = np.linalg.norm(difference.astype(np.float64), axis=1)
            apart = x[:, None, :].astype(np.float64) - tokens.astype(np.float64)
            least = np.linalg.norm(apart, axis=2).min(axis=1)
            assert (got >= least * (1 - 1e-5)).all()
            if not strange:
                assert np.median(got / least) < 1.02


def test_int8_hides_no_nan_of_a_token(case: Case, tmp_path: Path) -> None:
    """A search among integers finds some token for anything."""
    for number, search in enumerate(case.searches):
        model = onnx.load(case.int8)
        (centre,) = (t for t in model.graph.initializer if t.name.endswith(f"{number}.centre"))
        values = numpy_helper.to_array(centre).copy()
        values[3] = np.nan
        centre.CopyFrom(numpy_helper.from_array(values, centre.name))
        onnx.save(model, tmp_path / "nan.onnx")
        with OnnxRuntimeRunner(tmp_path / "nan.onnx") as runner:
            found = runner.run(pictures(1, seed=7))[0]
        assert np.isnan(found.anomaly_map).all(), search.name
        assert np.isnan(found.score)


def test_a_search_that_stays_fp32_is_exact(case: Case, tmp_path: Path) -> None:
    """Its tokens are stored in INT8 all the same, and found among what they are brought back to."""
    blocks = [block for block in case.calibrated.groups if block not in MEMORIES]
    case.calibrated.write(tmp_path / "some.onnx", blocks)
    model = onnx.load(tmp_path / "some.onnx")
    stored = [t for t in model.graph.initializer if MEMORY in t.dims and len(t.dims) == 2]
    banks = [t for t in stored if min(t.dims) > 1]
    assert [t.data_type for t in banks] == [TensorProto.INT8] * len(MEMORIES)
    image = pictures(1, seed=7)[0]
    for search in case.searches:
        bank = search.input[1]
        subtraction = difference_of(case, model, search)
        names = [bank, subtraction.input[0], subtraction.output[0]]
        tokens, x, difference = seen(model, names, image)
        apart = x[:, None, :].astype(np.float64) - tokens.astype(np.float64)
        least = np.linalg.norm(apart, axis=2).min(axis=1)
        assert np.linalg.norm(difference, axis=1) == pytest.approx(least, rel=1e-4)


def test_the_plain_rounding_rounds_what_a_search_reads_and_nothing_else_of_it(case: Case) -> None:
    """256 values for hundreds of scores would make a baseline that anything is better than."""
    plain = plain_int8(case.calibrated.model, case.layers, case.calibrated.ranges)
    nodes = {node.name: node for node in plain.graph.node}
    made = {name for node in plain.graph.node for name in node.output}
    for search in case.searches:
        assert nodes[search.name].input[0] == f"{search.input[0]}/rounded"
        assert f"{search.output[0]}/rounded" not in made
        compared = difference_of(case, case.source, search).input[0]
        assert difference_of(case, plain, search).input[0] == compared


def searching(kinds: list[str], also: str | None = None) -> ModelProto:
    """x times a constant, then operations of these kinds; `also` reads the product besides."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [node("Gemm", ["x", "w"], ["t0"], "product", transB=1)]
    nodes += [node(kind, [f"t{i}"], [f"t{i + 1}"]) for i, kind in enumerate(kinds)]
    last = f"t{len(kinds)}"
    outputs = [value(last, TensorProto.INT64 if kinds else TensorProto.FLOAT, None)]
    if also == "output":
        outputs.append(value("t0", TensorProto.FLOAT, None))
    elif also:
        nodes.append(node(also, ["t0"], ["other"]))
        outputs.append(value("other", TensorProto.FLOAT, None))
    weight = numpy_helper.from_array(np.ones((5, 3), np.float32), "w")
    inputs = [value("x", TensorProto.FLOAT, [2, 3])]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight]))


@pytest.mark.parametrize(
    ("kinds", "also", "chooses"),
    [
        (["ArgMax"], None, True),
        (["Reshape", "ReduceMax", "ArgMax"], None, True),
        (["ArgMax"], "ArgMax", True),
        (["ArgMax"], "Relu", False),
        (["ArgMax"], "ReduceMax", False),
        (["ArgMax"], "output", False),
        (["Softmax", "ArgMax"], None, False),
        ([], None, False),
    ],
)
def test_a_product_chooses_if_only_the_place_of_its_maximum_is_used(
    kinds: list[str], also: str | None, chooses: bool
) -> None:
    assert choosing_products(searching(kinds, also)) == (["product"] if chooses else [])
