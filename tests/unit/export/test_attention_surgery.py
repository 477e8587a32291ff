"""The graph with MaskedAttention says what the graph before says; what is not ours stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.tiny_bundle import write_model

from metal_edge.export.attention_surgery import Surgery, replace_attention
from metal_edge.export.attention_variants import plugin_graphs
from metal_edge.export.masked_attention import OP, VERSION, Fill, MaskedAttentionSpec
from metal_edge.export.masked_attention_onnx import REFERENCE_OPS
from metal_edge.export.onnx_model import onnx_from_model
from metal_edge.export.operator_node import DOMAIN
from metal_edge.models.anovit import AnoViTConfig
from metal_edge.models.attention import MaskRule
from metal_edge.models.features import MetalFeaturesConfig
from metal_edge.models.metal import MetalConfig
from metal_edge.models.registry import NetworkConfig, build_model
from metal_edge.models.vit import import_timm
from metal_edge.models.zeroleak import allowed_tokens
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.fp16 import convert_fp16
from metal_edge.quantize.int8 import calibrate
from metal_edge.quantize.tensorrt_qdq import read_amplitudes, write_tensorrt_int8

RULES = ("off", "zero", "neg_inf")
KINDS = [*(f"metal-{rule}" for rule in RULES), "stripes", "zeroleak", "features", "anovit", "timm"]
Frames = NDArray[np.uint8]


def config_of(kind: str) -> NetworkConfig:
    if kind == "timm":
        pytest.importorskip("timm", exc_type=ImportError)
        decoder = (4, 4, 4, 4, 4)
        return AnoViTConfig.for_vit("timm:test_vit", image_size=32, decoder=decoder)
    if kind == "anovit":
        small = {"image_size": 32, "patch_size": 8, "width": 32, "heads": 2, "depth": 2}
        return AnoViTConfig.model_validate({**small, "decoder": (4, 4, 4, 4, 4)})
    if kind == "features":
        return MetalFeaturesConfig(
            image_size=64, grid=8, width=64, heads=4, memory=0, students=False, radius=1
        )
    hidden = {"square_hidden": 16, "stripe_hidden": 16, "decoder_hidden": (16,)}
    if kind == "stripes":  # heads as wide as the operator takes them
        config = {"embedding": 128, "heads": 2, "mask": MaskRule.ZERO}
    elif kind == "zeroleak":
        config = {"embedding": 32, "heads": 2, "mask": MaskRule.ZEROLEAK, "blocks": 2}
    else:
        config = {"embedding": 32, "heads": 2, "mask": MaskRule(kind.removeprefix("metal-"))}
    return MetalConfig.model_validate({"image_size": 32, "patch_size": 8, **hidden, **config})


def exported(kind: str) -> ModelProto:
    """Weights of a size at which attention is sharp: fresh ones look at everything alike."""
    torch.manual_seed(0)
    if kind == "timm":
        import_timm()
    model = build_model(config_of(kind)).eval()
    if kind == "features":
        model.load_pretrained()  # random convolutions leave nothing of the picture
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "query" in name or "qkv" in name or "key_value" in name:
                weight.copy_(2 * torch.randn_like(weight) / weight.shape[-1] ** 0.5)
    return onnx_from_model(model)


class Graphs:
    """Graphs of every kind, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, ModelProto] = {}

    def fp32(self, kind: str) -> ModelProto:
        return self._get(f"{kind}.fp32", lambda: exported(kind))

    def fp16(self, kind: str) -> ModelProto:
        def make() -> ModelProto:
            convert_fp16(self._file(self.fp32(kind), "source"), self._folder / "half.onnx")
            return onnx.load(self._folder / "half.onnx")

        return self._get(f"{kind}.fp16", make)

    def int8(self, kind: str, frames: Frames) -> ModelProto:
        def make() -> ModelProto:
            source, half = self._file(self.fp32(kind), "a"), self._file(self.fp16(kind), "b")
            calibrated = calibrate(source, frames, CalibrationMethod.MINMAX)
            calibrated.write(self._folder / "c.onnx", calibrated.groups)
            write_tensorrt_int8(half, self._folder / "c.onnx", self._folder / "d.onnx")
            return onnx.load(self._folder / "d.onnx")

        return self._get(f"{kind}.int8", make)

    def _file(self, model: ModelProto, name: str) -> Path:
        onnx.save(model, self._folder / f"{name}.onnx")
        return self._folder / f"{name}.onnx"

    def _get(self, name: str, make: Callable[[], ModelProto]) -> ModelProto:
        if name not in self._made:
            self._made[name] = make()
        copy = ModelProto()
        copy.CopyFrom(self._made[name])
        return copy


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs(tmp_path_factory.mktemp("graphs"))


def pictures(model: ModelProto, count: int) -> Frames:
    """Smooth random pictures of the size that the graph takes."""
    side = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([cv2.resize(c, (side, side), interpolation=cv2.INTER_CUBIC) for c in coarse])


def every_tensor(model: ModelProto, images: Frames) -> dict[str, NDArray[Any]]:
    evaluator = ReferenceEvaluator(model, new_ops=REFERENCE_OPS)
    return evaluator.run(None, {"image": images}, intermediate=True)  # type: ignore[return-value]


def by_onnx_runtime(model: ModelProto, images: Frames) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["anomaly_map"], {"image": images})[0])


def ours(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == OP]


def whole(model: ModelProto, count: int) -> Surgery:
    """Surgery that must replace all; its graph has nothing of attention left."""
    before = model.SerializeToString()
    done = replace_attention(model)
    assert model.SerializeToString() == before
    assert (len(done.replaced), done.refused) == (count, ())
    assert len(ours(done.model)) == count
    assert all(node.op_type != "Softmax" for node in done.model.graph.node)
    assert {o.domain: o.version for o in done.model.opset_import}[DOMAIN] == VERSION
    assert done.model.graph.input == model.graph.input
    assert done.model.graph.output == model.graph.output
    return done


COUNTS = {"features": 2, "timm": 6} | dict.fromkeys(
    [k for k in KINDS if k not in {"features", "timm"}], 2
)


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_is_the_same_to_rounding(graphs: Graphs, kind: str) -> None:
    """Every tensor that both graphs have, and the map by ONNX Runtime."""
    before = graphs.fp32(kind)
    after = whole(before, COUNTS[kind]).model
    images = pictures(before, 2)
    expected, got = every_tensor(before, images), every_tensor(after, images)
    common = [n for n in got if n and n in expected and got[n].dtype == np.float32]
    assert len(common) > 20
    for name in common:
        # Sums of up to a few hundred products in another order, through all layers.
        room = 256 * np.finfo(np.float32).eps * np.abs(expected[name]).max()
        assert np.abs(got[name] - expected[name]).max() <= room, name
    by_runtime = by_onnx_runtime(before, images)
    off = np.abs(got["anomaly_map"] - by_runtime).max()
    assert off <= 256 * np.finfo(np.float32).eps * np.abs(by_runtime).max()


def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((one - other) ** 2, dtype=np.float64)))


@pytest.mark.parametrize("kind", KINDS)
def test_fp16_is_at_most_twice_as_far_from_fp32_as_the_graph_before(
    graphs: Graphs, kind: str
) -> None:
    before = graphs.fp16(kind)
    done = whole(before, COUNTS[kind])
    assert {one.dtype for one in done.replaced} == {"float16"}
    images = pictures(before, 2)
    exact = by_onnx_runtime(graphs.fp32(kind), images)
    plain = every_tensor(before, images)["anomaly_map"]
    got = every_tensor(done.model, images)["anomaly_map"]
    assert 0 < distance(got, exact) <= 2 * distance(plain, exact)


@pytest.mark.parametrize("kind", ["metal-neg_inf", "stripes", "zeroleak", "features"])
def test_int8_reads_and_writes_integers_in_calibrated_steps(graphs: Graphs, kind: str) -> None:
    images = pictures(graphs.fp32(kind), 12)
    before = graphs.int8(kind, images)
    done = whole(before, COUNTS[kind])
    narrow = [one for one in done.replaced if one.head_dim <= 128]
    assert [one.dtype == "int8" for one in done.replaced] == [
        one.head_dim <= 128 for one in done.replaced
    ]
    producer = {out: node for node in done.model.graph.node for out in node.output}
    reader = {name: node for node in done.model.graph.node for name in node.input}
    constant = {t.name: numpy_helper.to_array(t) for t in done.model.graph.initializer}
    amplitudes = read_amplitudes(before)
    assert len(narrow) > 0
    for node in ours(done.model):
        spec = MaskedAttentionSpec.from_node(node)
        if spec.int8 is None:
            continue
        scales = [spec.int8.q, spec.int8.v] if len(node.input) == 2 else [spec.int8.q]
        assert spec.int8.k == scales[-1]
        for name, scale in zip(node.input, scales, strict=True):
            source = producer[name]
            source = producer[source.input[0]] if source.op_type == "Reshape" else source
            assert source.op_type == "QuantizeLinear"
            assert float(constant[source.input[1]]) == scale
            if source.input[0] in amplitudes:
                assert scale == pytest.approx(amplitudes[source.input[0]] / 127, rel=2**-11)
        assert reader[node.output[0]].op_type == "DequantizeLinear"
        assert float(constant[reader[node.output[0]].input[1]]) == spec.int8.out
    exact = by_onnx_runtime(graphs.fp32(kind), images[:2])
    plain = every_tensor(before, images[:2])["anomaly_map"]
    got = every_tensor(done.model, images[:2])["anomaly_map"]
    assert 0 < distance(got, exact) <= 2 * distance(plain, exact)
    floats = replace_attention(before, int8=False)
    assert {one.dtype for one in floats.replaced} == {"float16"}


def test_masks_are_those_of_the_models(graphs: Graphs) -> None:
    diagonal = ~np.eye(16, dtype=bool)
    off, zero, neg_inf = (
        MaskedAttentionSpec.from_node(ours(whole(graphs.fp32(f"metal-{r}"), 2).model)[0])
        for r in RULES
    )
    assert (off.allowed.all(), off.fill) == (True, Fill.EXCLUDE)
    assert (zero.fill, neg_inf.fill) == (Fill.ZERO, Fill.EXCLUDE)
    for spec in (zero, neg_inf):
        np.testing.assert_array_equal(spec.allowed, diagonal[None])
    config = config_of("zeroleak")
    assert isinstance(config, MetalConfig)
    for node in ours(whole(graphs.fp32("zeroleak"), 2).model):
        spec = MaskedAttentionSpec.from_node(node)
        allowed = allowed_tokens(config.grid, config.shapes, config.radius)
        np.testing.assert_array_equal(spec.allowed, allowed[None])
    for node in ours(whole(graphs.fp32("features"), 2).model):
        spec = MaskedAttentionSpec.from_node(node)
        assert (spec.slopes, spec.columns) == ((2.0, 1.0, 0.0, 0.0), 8)
        assert spec.mask_shape == (1, 64, 64)


@pytest.mark.parametrize("kind", ["metal-zero", "zeroleak"])
def test_projections_are_read_as_they_were_written(graphs: Graphs, kind: str) -> None:
    model = whole(graphs.fp32(kind), 2).model
    assert all(node.op_type not in {"Slice", "Squeeze"} for node in model.graph.node)
    producer = {out: node for node in model.graph.node for out in node.output}
    packed = 3 if kind == "metal-zero" else 2
    for node in ours(model):
        assert len(node.input) == (1 if packed == 3 else 2)
        source = producer[node.input[-1]]
        source = producer[source.input[0]] if source.op_type == "Reshape" else source
        assert source.op_type in {"MatMul", "Gemm"}
        weight = next(t for t in model.graph.initializer if t.name == source.input[1])
        assert weight.dims[1] == packed * weight.dims[0]
    if kind == "zeroleak":
        first = next(t for t in model.graph.initializer if t.name == ours(model)[0].input[0])
        assert list(first.dims) == [1, 16, 64], "one query for all images"


def test_a_fixed_batch_is_kept(graphs: Graphs) -> None:
    torch.manual_seed(0)
    before = onnx_from_model(build_model(config_of("metal-zero")).eval(), batch=3)
    after = whole(before, 2).model
    images = pictures(before, 3)
    np.testing.assert_allclose(
        every_tensor(after, images)["score"], every_tensor(before, images)["score"], rtol=1e-5
    )


# --- What is not ours ------------------------------------------------------------------------


def softmax_of(model: ModelProto) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == "Softmax")


def node_writing(model: ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def set_constant(model: ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    """Gives one reader's constant other values; others keep theirs."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def add_output(model: ModelProto, name: str) -> None:
    free = [None, None, None, None]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, free))


def mask_node(model: ModelProto) -> NodeProto:
    return node_writing(model, softmax_of(model).input[0])


def scores_are_an_output(model: ModelProto) -> None:
    add_output(model, mask_node(model).input[0])


def weights_are_an_output(model: ModelProto) -> None:
    add_output(model, softmax_of(model).output[0])


def mask_is_computed(model: ModelProto) -> None:
    node = mask_node(model)
    model.graph.node.insert(0, helper.make_node("Identity", [node.input[1]], ["made"], "made"))
    node.input[1] = "made"


def row_without_keys(model: ModelProto) -> None:
    def close(mask: NDArray[np.float32]) -> NDArray[np.float32]:
        mask[3] = -1e4
        return mask

    set_constant(model, mask_node(model).input[1], close)


def preference(model: ModelProto) -> None:
    def prefer(mask: NDArray[np.float32]) -> NDArray[np.float32]:
        mask[3, 4] = -1.0
        return mask

    set_constant(model, mask_node(model).input[1], prefer)


def softmax_over_queries(model: ModelProto) -> None:
    softmax_of(model).attribute[0].i = 2


def values_are_scaled(model: ModelProto) -> None:
    mixing = next(n for n in model.graph.node if softmax_of(model).output[0] in n.input)
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    model.graph.node.append(helper.make_node("Mul", [mixing.input[1], "two"], ["twice"], "twice"))
    mixing.input[1] = "twice"


def clipped_scores(model: ModelProto) -> None:
    softmax = softmax_of(model)
    model.graph.node.append(helper.make_node("Tanh", [softmax.input[0]], ["soft"], "soft"))
    softmax.input[0] = "soft"


def query_and_key_swapped(model: ModelProto) -> None:
    """As a projection that packs key, query, value would."""
    product = node_writing(model, mask_node(model).input[0])
    scaled, turned = (node_writing(model, name) for name in product.input)
    scaled.input[0], turned.input[0] = turned.input[0], scaled.input[0]


def heads_interleaved(model: ModelProto) -> None:
    """Head h owns every second column: no layout of the operator's."""
    mixing = next(n for n in model.graph.node if softmax_of(model).output[0] in n.input)
    back = next(n for n in model.graph.node if mixing.output[0] in n.input)
    back.attribute[0].ints[:] = [0, 2, 3, 1]


def branch(model: ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node("If", ["made"], ["x"], "if", then_branch=body, else_branch=body)
    model.graph.node.append(node)


REFUSALS: list[tuple[Callable[[ModelProto], None], str]] = [
    (scores_are_an_output, "scores .* are used elsewhere"),
    (weights_are_an_output, "weights .* are used elsewhere"),
    (mask_is_computed, "mask, at .*, is not constant"),
    (row_without_keys, "leaves a query nothing to look at"),
    (preference, "neither 0 nor -1e4, nor a slope times"),
    (softmax_over_queries, "softmax over axis 2 of 4"),
    (values_are_scaled, "values are multiplied by 2"),
    (clipped_scores, "a Tanh between its scores and Softmax"),
    (query_and_key_swapped, "packed in another order"),
    (heads_interleaved, "not put side by side again"),
]


@pytest.mark.parametrize(("spoil", "words"), REFUSALS, ids=lambda v: getattr(v, "__name__", ""))
def test_what_is_not_recognised_exactly_stays(
    graphs: Graphs, spoil: Callable[[ModelProto], None], words: str
) -> None:
    """The other attention of the same graph is replaced all the same."""
    model = graphs.fp32("metal-neg_inf")
    spoil(model)
    done = replace_attention(model)
    assert len(done.refused) == 1
    assert len(done.replaced) == 1
    assert softmax_of(model).name in done.refused[0]
    assert re.search(words, done.refused[0]), done.refused
    assert softmax_of(done.model).name == softmax_of(model).name


def test_a_graph_with_nothing_of_ours_stays_as_it_is(tmp_path: Path, graphs: Graphs) -> None:
    write_model(tmp_path / "tiny.onnx")
    tiny = onnx.load(tmp_path / "tiny.onnx")
    done = replace_attention(tiny)
    assert (done.replaced, done.refused) == ((), ())
    assert done.model == tiny
    split = graphs.fp32("metal-zero")
    branch(split)
    done = replace_attention(split)
    assert done.refused == ("the graph has branches or loops",)
    assert done.model == split


def test_heads_that_no_kernel_takes_stay() -> None:
    config = {"image_size": 32, "patch_size": 8, "embedding": 16, "heads": 2}
    torch.manual_seed(0)
    model = onnx_from_model(build_model(MetalConfig.model_validate(config)).eval())
    done = replace_attention(model)
    assert [one.head_dim for one in done.replaced] == [32]
    assert len(done.refused) == 1
    assert "head size 8 is not a multiple of 16" in done.refused[0]


def test_what_is_tried_on_a_device(graphs: Graphs) -> None:
    images = pictures(graphs.fp32("zeroleak"), 12)
    names = {
        "fp32": [graph.name for graph in plugin_graphs(graphs.fp32("zeroleak"))[0]],
        "fp16": [graph.name for graph in plugin_graphs(graphs.fp16("zeroleak"))[0]],
        "int8": [graph.name for graph in plugin_graphs(graphs.int8("zeroleak", images))[0]],
    }
    assert names == {
        "fp32": ["plugin"],
        "fp16": ["plugin", "plugin block"],
        "int8": ["plugin int8", "plugin"],
    }
