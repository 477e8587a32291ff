"""The operator's definition: mask bits, attributes, and agreement with PyTorch's attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from metal_edge.export.masked_attention import (
    VERSION,
    Fill,
    Int8Scales,
    MaskedAttentionSpec,
    grid_distances,
    mask_from_hex,
    mask_to_hex,
    pack_mask,
    plain,
    reference,
    unpack_mask,
)
from metal_edge.export.masked_attention_onnx import REFERENCE_OPS
from metal_edge.export.operator_node import DOMAIN
from metal_edge.models.attention import MaskedSelfAttention, MaskRule
from metal_edge.models.features import attention_bias
from metal_edge.models.zeroleak import CrossAttentionBlock, mask_bias

MASKS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70)))
SCALES = Int8Scales(0.01, 0.02, 0.03, 0.04)


def random_mask(
    rng: np.random.Generator, groups: int, queries: int, keys: int
) -> NDArray[np.bool_]:
    return np.asarray(rng.random((groups, queries, keys)) < rng.random())


@given(mask=MASKS)
def test_a_mask_survives_packing(mask: NDArray[np.bool_]) -> None:
    words = pack_mask(mask)
    assert words.dtype == np.uint32
    assert words.shape == (*mask.shape[:2], -(-mask.shape[2] // 32))
    np.testing.assert_array_equal(unpack_mask(words, mask.shape[2]), mask)
    shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    np.testing.assert_array_equal(mask_from_hex(mask_to_hex(mask), shape), mask)


@given(mask=MASKS, data=st.data())
def test_key_j_is_bit_j_of_its_rows_words(mask: NDArray[np.bool_], data: st.DataObject) -> None:
    g, i, j = (data.draw(st.integers(0, size - 1)) for size in mask.shape)
    assert (int(pack_mask(mask)[g, i, j // 32]) >> (j % 32)) & 1 == mask[g, i, j]


def test_hex_by_hand() -> None:
    mask = np.zeros((1, 2, 35), np.bool_)
    mask[0, 0, [0, 9]] = True
    mask[0, 1, 34] = True
    assert mask_to_hex(mask) == "01020000000000000000000004000000"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0000", "4 hex digits"),
        ("0000000g", "lower-case hex"),
        ("0F000000", "lower-case hex"),
        ("00000008", "padding bit of the mask, beyond key 4"),
    ],
)
def test_a_damaged_mask_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mask_from_hex(text, (1, 1, 5))


specs = st.builds(
    lambda mask, fill, scale, int8: MaskedAttentionSpec.of_mask(
        mask, mask.shape[0], fill=fill, scale=scale, int8=int8
    ),
    MASKS,
    st.sampled_from(Fill),
    st.none() | st.floats(0.015625, 4, width=32),
    st.none() | st.just(Int8Scales(0.5, 0.25, 2.0, 0.125)),
)


@given(spec=specs)
def test_a_node_says_what_the_attributes_say(spec: MaskedAttentionSpec) -> None:
    node = spec.node(["q", "k", "v"], "out", "attention")
    again = onnx.NodeProto.FromString(node.SerializeToString())
    assert MaskedAttentionSpec.from_node(again) == spec


GOOD = MaskedAttentionSpec.of_mask(np.ones((4, 4), np.bool_), 2).attributes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"mask_shape": [3, 4, 4]}, "3 masks, not 1 or 2"),
        ({"mask_shape": [1, 4, 5000]}, "4 x 5000"),
        ({"mask_shape": [4, 4]}, "2 numbers"),
        ({"mask": None}, "attribute mask is missing"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"fill": "minus"}, "minus"),
        ({"columns": 2}, "columns is 2"),
        ({"slopes": [0.5], "columns": 2}, "1 slopes for 2 heads"),
        ({"slopes": [0.5, 0.5]}, "columns is 0"),
        ({"q_scale": 1.0}, "k_scale is missing"),
        ({f"{n}_scale": float(n != "v") for n in ("q", "k", "v", "out")}, "v_scale is 0.0"),
        ({"colour": 1}, "unknown attribute colour"),
    ],
)
def test_senseless_attributes_are_refused(change: dict[str, Any], words: str) -> None:
    found = {k: v for k, v in (GOOD | change).items() if v is not None}
    with pytest.raises(ValueError, match=words):
        MaskedAttentionSpec.from_attributes(found)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), fill=st.sampled_from(Fill))
def test_it_is_torchs_attention(seed: int, fill: Fill) -> None:
    rng = np.random.default_rng(seed)
    heads, each = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    batch, queries, keys = (int(n) for n in rng.integers(1, 9, 3))
    mask = random_mask(rng, int(rng.choice([1, heads])), queries, keys)
    scale = float(rng.uniform(0.1, 2))
    spec = MaskedAttentionSpec.of_mask(mask, heads, scale=scale, fill=fill)
    sizes = (queries, keys, keys)
    parts = [rng.normal(size=(batch, n, heads * each)) for n in sizes]
    q, k, v = (torch.from_numpy(p).unflatten(2, (heads, each)).transpose(1, 2) for p in parts)
    allowed = torch.from_numpy(mask)
    if fill is Fill.EXCLUDE:
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, torch.zeros(mask.shape).double().masked_fill(~allowed, -torch.inf), scale=scale
        ).nan_to_num(0.0)  # PyTorch's row without allowed keys
    else:
        out = (q @ k.mT * scale * allowed).softmax(-1) @ v
    expected = out.transpose(1, 2).flatten(2).numpy()
    np.testing.assert_allclose(reference(parts, spec), expected, atol=1e-12)


@pytest.mark.parametrize("rule", [MaskRule.OFF, MaskRule.ZERO, MaskRule.NEG_INF])
def test_it_is_metals_attention(rule: MaskRule) -> None:
    torch.manual_seed(0)
    module = MaskedSelfAttention(24, 3, 7, rule).double()
    module.project = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.randn(2, 7, 24).double()
    diagonal = np.ones((7, 7)) if rule is MaskRule.OFF else 1 - np.eye(7)
    fill = Fill.ZERO if rule is MaskRule.ZERO else Fill.EXCLUDE
    spec = MaskedAttentionSpec.of_mask(diagonal.astype(bool), 3, fill=fill)
    with torch.inference_mode():
        qkv = module.query_key_value(x).numpy()
        expected = module(x).numpy()
    np.testing.assert_allclose(reference([qkv], spec), expected, atol=1e-12)


@pytest.mark.parametrize("sloped", [False, True])
def test_it_is_zeroleaks_attention(sloped: bool) -> None:
    torch.manual_seed(0)
    grid, heads, width = 4, 4, 16  # the last two of its heads have slope 0
    block = CrossAttentionBlock(width, heads, 1).double()
    if sloped:
        bias = attention_bias(grid, 1, heads).double()
        allowed = (bias > -5000).numpy()[:1]
        slopes = tuple(-float(b[0, 2]) / 2.0 for b in bias)
        spec = MaskedAttentionSpec.of_mask(allowed, heads, slopes=slopes, columns=grid)
    else:
        near = grid_distances(grid * grid, grid) < 1.5
        bias = mask_bias(~near).double()
        spec = MaskedAttentionSpec.of_mask(~near, heads)
    queries = torch.randn(1, grid * grid, width).double()
    content = torch.randn(3, grid * grid, width).double()
    with torch.inference_mode():
        q = block.query(block.norm_query(queries)).numpy()
        kv = block.key_value(block.norm_content(content)).numpy()
        mixed = torch.from_numpy(reference([q, kv], spec))
        known = queries + block.project(mixed)
        got = known + block.mlp(block.norm_mlp(known))
        expected = block(queries, content, bias)
    rounding = 1e-6 if sloped else 1e-12  # the module's distances are float32
    assert (got - expected).abs().max() < rounding


@pytest.mark.parametrize(("kind", "roundings"), [(np.float32, 8), (np.float16, 1)])
def test_its_own_precision_stays_near_the_definition(kind: type, roundings: int) -> None:
    """FP16 rounds each weight and the result once; FP32 also every step in between."""
    rng = np.random.default_rng(0)
    mask = random_mask(rng, 2, 9, 40)
    mask[:, 3, :] = np.arange(40) == 7  # a row whose only weight is exactly 1
    spec = MaskedAttentionSpec.of_mask(mask, 2)
    q, k, v = (rng.normal(size=(2, n, 32)).astype(kind) for n in (9, 40, 40))
    got = plain([q, k, v], spec)
    assert got.dtype == kind
    exact, magnitude = reference([q, k, v], spec), reference([q, k, np.abs(v)], spec)
    step = roundings * float(np.finfo(kind).eps) / 2
    assert (np.abs(got - exact) <= step * 1.01 * (magnitude + np.abs(exact))).all()


def test_int8_is_within_a_step_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    spec = MaskedAttentionSpec.of_mask(random_mask(rng, 1, 9, 40), 2, int8=SCALES)
    qkv = [rng.integers(-128, 128, (2, n, 32)).astype(np.int8) for n in (9, 40, 40)]
    got = plain(qkv, spec)
    assert got.dtype == np.int8
    exact = np.clip(reference(qkv, spec) / SCALES.out, -128, 127)
    assert np.abs(got - exact).max() <= 0.5 + 127 * 2.0**-10


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("wild", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compute", [reference, plain])
def test_what_is_not_finite_reaches_those_who_may_look_at_it(
    compute: Any, wild: float, kind: type
) -> None:
    rng = np.random.default_rng(0)
    allowed = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
    spec = MaskedAttentionSpec.of_mask(allowed, 1)
    for tensor, row, hit in ((0, 1, [1]), (1, 0, [0]), (1, 1, [0, 1]), (2, 2, [1])):
        parts = [rng.normal(size=(1, 3, 16)).astype(kind) for _ in range(3)]
        parts[tensor][0, row] = wild
        finite = np.isfinite(compute(parts, spec)[0]).all(axis=1)
        assert np.flatnonzero(~finite).tolist() == hit
        assert not compute(parts, spec)[0, 2].any()


@pytest.mark.parametrize("compute", [reference, plain])
def test_an_infinite_key_does_not_vanish_behind_a_score_of_minus_infinity(compute: Any) -> None:
    q, k, v = (np.ones((1, 2, 16), np.float32) for _ in range(3))
    k[0, 1, 0] = -np.inf
    spec = MaskedAttentionSpec.of_mask(np.array([[True, True], [True, False]]), 1)
    got = compute([q, k, v], spec)
    assert np.isnan(got[0, 0]).all()
    assert (got[0, 1] == 1).all()


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(1, 4, 32), (1, 4, 32), (1, 5, 32)], "have shapes"),
        ([(2, 4, 32), (3, 4, 64)], "have shapes"),
        ([(1, 5, 32), (1, 4, 64)], "not \\(5, 4\\)"),
        ([(1, 4, 31)], "no Q, K, V"),
        ([(1, 4, 9)], "width 3 is not divisible"),
    ],
)
def test_inputs_that_do_not_go_together(shapes: list[tuple[int, ...]], words: str) -> None:
    spec = MaskedAttentionSpec.from_attributes(GOOD)
    tensors = [np.zeros(shape, np.float32) for shape in shapes]
    with pytest.raises(ValueError, match=words):
        reference(tensors, spec)
    with pytest.raises(ValueError, match="int8"):
        reference([np.zeros((1, 4, 96), np.int8)], spec)


def test_a_graph_with_the_operator_runs() -> None:
    rng = np.random.default_rng(0)
    spec = MaskedAttentionSpec.of_mask(random_mask(rng, 1, 4, 4), 2, fill=Fill.ZERO)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [spec.node(["qkv"], "out", "attention")],
        "one",
        [value("qkv", TensorProto.FLOAT16, [None, 4, 96])],
        [value("out", TensorProto.FLOAT16, [None, 4, 32])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.checker.check_model(model)
    qkv = rng.normal(size=(2, 4, 96)).astype(np.float16)
    (got,) = ReferenceEvaluator(model, new_ops=REFERENCE_OPS).run(None, {"qkv": qkv})
    np.testing.assert_array_equal(got, plain([qkv], spec))
