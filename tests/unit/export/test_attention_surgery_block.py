"""The graph with MaskedAttentionBlock says what the graph before says; what is not one stays."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from metal_edge.export.attention_surgery import replace_attention
from metal_edge.export.attention_surgery_block import BlockSurgery, fuse_blocks
from metal_edge.export.masked_attention_block import INPUTS, OP, MaskedAttentionBlockSpec
from metal_edge.export.masked_attention_onnx import REFERENCE_OPS
from metal_edge.export.onnx_model import onnx_from_model
from metal_edge.export.operator_node import DOMAIN
from metal_edge.models.attention import MaskRule
from metal_edge.models.features import MetalFeaturesConfig
from metal_edge.models.metal import MetalConfig
from metal_edge.models.registry import build_model
from metal_edge.models.zeroleak import allowed_tokens
from metal_edge.quantize.fp16 import convert_fp16

ZEROLEAK = MetalConfig(
    image_size=32,
    patch_size=8,
    embedding=32,
    heads=2,
    mask=MaskRule.ZEROLEAK,
    blocks=2,
    square_hidden=16,
    stripe_hidden=16,
    decoder_hidden=(16,),
)


def exported(config: MetalConfig | MetalFeaturesConfig) -> ModelProto:
    """Parameters that differ from layer to layer, of sizes as after training."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "position" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "query" in name or "key_value" in name or "project" in name:
                parameter.copy_(2 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return onnx_from_model(model)


@pytest.fixture(scope="module")
def exact() -> ModelProto:
    return exported(ZEROLEAK)


@pytest.fixture(scope="module")
def half(exact: ModelProto, tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    folder = tmp_path_factory.mktemp("half")
    onnx.save(exact, folder / "exact.onnx")
    convert_fp16(folder / "exact.onnx", folder / "half.onnx")
    return onnx.load(folder / "half.onnx")


def attended(model: ModelProto) -> ModelProto:
    done = replace_attention(model, int8=False)
    assert (len(done.replaced), done.refused) == (2, ())
    return done.model


def whole(model: ModelProto, **options: Any) -> BlockSurgery:
    before = model.SerializeToString()
    done = fuse_blocks(model, **options)
    assert model.SerializeToString() == before
    assert (len(done.fused), done.refused) == (2, ())
    return done


def blocks(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OP)]


def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def tensors(model: ModelProto) -> dict[str, NDArray[Any]]:
    evaluator = ReferenceEvaluator(model, new_ops=REFERENCE_OPS)
    return evaluator.run(None, {"image": images()}, intermediate=True)  # type: ignore[return-value]


def test_fp32_is_the_same_to_rounding(exact: ModelProto) -> None:
    """Every tensor that both graphs have, and the map by ONNX Runtime."""
    expected, got = tensors(exact), tensors(whole(attended(exact), float32=True).model)
    common = [n for n in got if n and n in expected and got[n].dtype == np.float32]
    assert len(common) > 20
    for name in common:
        # Sums of up to a few hundred products in another order, through all layers.
        room = 256 * np.finfo(np.float32).eps * np.abs(expected[name]).max()
        assert np.abs(got[name] - expected[name]).max() <= room, name
    session = ort.InferenceSession(exact.SerializeToString(), providers=["CPUExecutionProvider"])
    by_runtime = session.run(["anomaly_map"], {"image": images()})[0]
    off = np.abs(got["anomaly_map"] - by_runtime).max()
    assert off <= 256 * np.finfo(np.float32).eps * np.abs(by_runtime).max()


def test_fp16_is_at_most_twice_as_far_from_fp32_as_the_graph_before(
    exact: ModelProto, half: ModelProto
) -> None:
    def distance(one: NDArray[Any]) -> float:
        return float(np.sqrt(np.mean((one - wanted) ** 2, dtype=np.float64)))

    wanted = tensors(exact)["anomaly_map"]
    got = tensors(whole(attended(half)).model)["anomaly_map"]
    assert 0 < distance(got) <= 2 * distance(tensors(half)["anomaly_map"])


def test_the_first_query_is_a_constant_of_the_exported_graph(half: ModelProto) -> None:
    """The exporter has projected it: positions are the same for all images."""
    done = whole(attended(half))
    assert [one.constant_query for one in done.fused] == [True, False]
    stored = {tensor.name: list(tensor.dims) for tensor in done.model.graph.initializer}
    first, second = blocks(done.model)
    query, residual = (first.input[INPUTS.index(name)] for name in ("query", "residual"))
    assert stored[query] == stored[residual] == [1, 16, 64]
    assert second.input[0] not in stored


def test_nothing_of_the_blocks_is_left_beside_them(half: ModelProto) -> None:
    """Per block: LayerNorm, Gemm, MaskedAttention, Gemm, Add; casts and reshapes between them."""
    before, done = attended(half), whole(attended(half))
    for kind, gone in (("LayerNormalization", 2), ("Gemm", 4), ("Add", 2), ("MaskedAttention", 2)):
        counts = [sum(n.op_type == kind for n in m.graph.node) for m in (before, done.model)]
        assert counts[0] - counts[1] == gone, kind
    allowed = allowed_tokens(ZEROLEAK.grid, ZEROLEAK.shapes, ZEROLEAK.radius)
    for node in blocks(done.model):
        spec = MaskedAttentionBlockSpec.from_node(node)
        np.testing.assert_array_equal(spec.attention.allowed, allowed[None])
        assert spec.epsilon == pytest.approx(1e-5)
        by_name = {t.name: t for t in done.model.graph.initializer}
        kinds = {by_name[name].data_type for name in node.input[3:]}
        assert kinds == {TensorProto.FLOAT16}


def test_distances_come_along() -> None:
    config = MetalFeaturesConfig(image_size=64, grid=8, width=64, heads=4, memory=0, radius=1,
                                 students=False)  # fmt: skip
    done = whole(attended(exported(config)), float32=True)
    spec = MaskedAttentionBlockSpec.from_node(blocks(done.model)[0])
    assert (spec.attention.slopes, spec.attention.columns) == ((2.0, 1.0, 0.0, 0.0), 8)


# ---- What is no such block


def node_of(model: ModelProto, kind: str, index: int = 0) -> NodeProto:
    return [node for node in model.graph.node if node.op_type == kind][index]


def writer(model: ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def reader(model: ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if name in node.input)


def after_attention(model: ModelProto, kind: str) -> NodeProto:
    node = node_of(model, "MaskedAttention")
    while node.op_type != kind:
        node = reader(model, node.output[0])
    return node


def before_attention(model: ModelProto, kind: str) -> NodeProto:
    node = node_of(model, "MaskedAttention")
    node = writer(model, node.input[1])
    while node.op_type != kind:
        node = writer(model, node.input[0])
    return node


def set_attribute(node: NodeProto, name: str, value: float) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def set_constant(model: ModelProto, name: str, values: NDArray[Any]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def norm_is_gone(model: ModelProto) -> None:
    norm = before_attention(model, "LayerNormalization")
    norm.CopyFrom(helper.make_node("Identity", norm.input[:1], norm.output, norm.name))


def norm_over_two_axes(model: ModelProto) -> None:
    norm = before_attention(model, "LayerNormalization")
    set_attribute(norm, "axis", 1)


def doubled_projection(model: ModelProto) -> None:
    set_attribute(after_attention(model, "Gemm"), "alpha", 2.0)


def result_is_an_output(model: ModelProto) -> None:
    name = node_of(model, "MaskedAttention").output[0]
    model.graph.output.append(
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, [None, 16, 64])
    )


def no_residual(model: ModelProto) -> None:
    after_attention(model, "Add").op_type = "Mul"


def residual_per_channel(model: ModelProto) -> None:
    add = after_attention(model, "Add")
    name = next(n for n in add.input if n in {t.name for t in model.graph.initializer})
    set_constant(model, name, np.ones((1, 1, 64), np.float16))


def huge_gamma(model: ModelProto) -> None:
    norm = before_attention(model, "LayerNormalization")
    set_constant(model, norm.input[1], np.full(64, 1e6, np.float32))


def no_epsilon(model: ModelProto) -> None:
    set_attribute(before_attention(model, "LayerNormalization"), "epsilon", 0.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (norm_is_gone, "no LayerNorm"),
        (norm_over_two_axes, "LayerNorm of tokens"),
        (doubled_projection, r"alpha, beta, transA of \(2.0"),
        (result_is_an_output, "other places"),
        (no_residual, "not added to a residual"),
        (residual_per_channel, "residual .* has shape"),
        (huge_gamma, "beyond float16"),
        (no_epsilon, "epsilon is 0"),
    ],
)
def test_what_is_no_such_block_stays(
    half: ModelProto, change: Callable[[ModelProto], None], reason: str
) -> None:
    model = attended(half)
    change(model)
    done = fuse_blocks(model)
    assert len(done.fused) == 1, "the second block is untouched"
    (refusal,) = done.refused
    assert refusal.startswith(node_of(model, "MaskedAttention").name)
    assert re.search(reason, refusal), refusal
    assert len(blocks(done.model)) == 1


def test_float32_is_left_to_separate_kernels(exact: ModelProto) -> None:
    model = attended(exact)
    done = fuse_blocks(model)
    assert done.fused == ()
    assert all("float16" in reason for reason in done.refused)
    assert done.model == model


def test_more_keys_than_a_thread_block_holds_are_refused() -> None:
    config = ZEROLEAK.model_copy(update={"image_size": 96, "blocks": 1})
    model = replace_attention(exported(MetalConfig(**config.model_dump()))).model
    (refusal,) = fuse_blocks(model, float32=True).refused
    assert "M is 156, more than 128" in refusal
