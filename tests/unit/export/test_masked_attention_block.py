"""MaskedAttentionBlock in NumPy: against PyTorch's block, and its attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from metal_edge.export.masked_attention import Int8Scales, MaskedAttentionSpec
from metal_edge.export.masked_attention_block import (
    INPUTS,
    MaskedAttentionBlockSpec,
    plain,
    reference,
    why_not_fused,
)
from metal_edge.export.masked_attention_onnx import REFERENCE_OPS
from metal_edge.export.operator_node import DOMAIN
from metal_edge.models.shapes import Shape
from metal_edge.models.zeroleak import CrossAttentionBlock, allowed_tokens, mask_bias

ALLOWED = allowed_tokens(4, (Shape.SQUARES, Shape.ROWS), 0)
SPEC = MaskedAttentionBlockSpec(MaskedAttentionSpec.of_mask(ALLOWED, 2))


@pytest.fixture(scope="module")
def torch_block() -> CrossAttentionBlock:
    """In float64, with random parameters; its MLP adds nothing."""
    torch.manual_seed(0)
    block = CrossAttentionBlock(32, 2, 1).double().eval()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0 if name.startswith("mlp.2") else 0.5))
    return block


@pytest.fixture(scope="module")
def called(torch_block: CrossAttentionBlock) -> tuple[dict[str, Any], Any]:
    """Tensors of a call, float64, and what PyTorch makes of them."""
    block = torch_block
    queries, content = torch.randn(1, 16, 32).double(), torch.randn(3, 20, 32).double()
    with torch.inference_mode():
        values = (
            block.query(block.norm_query(queries)), content, queries,
            block.norm_content.weight, block.norm_content.bias,
            block.key_value.weight, block.key_value.bias,
            block.project.weight, block.project.bias,
        )  # fmt: skip
        out = block(queries, content, mask_bias(ALLOWED).double()).numpy()
    return {n: v.detach().numpy() for n, v in zip(INPUTS, values, strict=True)}, out


def test_the_definition_is_what_pytorch_computes(called: tuple[dict[str, Any], Any]) -> None:
    tensors, out = called
    np.testing.assert_allclose(reference(tensors, SPEC), out, atol=1e-12 * np.abs(out).max())


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_onnx_reference_computes_it_in_the_tensors_type(
    called: tuple[dict[str, Any], Any], kind: Any
) -> None:
    tensors = {name: values.astype(kind) for name, values in called[0].items()}
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    inputs = [helper.make_tensor_value_info(n, element, v.shape) for n, v in tensors.items()]
    output = helper.make_tensor_value_info("out", element, called[1].shape)
    graph = helper.make_graph([SPEC.node(list(INPUTS), "out", "block")], "one", inputs, [output])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    (got,) = ReferenceEvaluator(model, new_ops=REFERENCE_OPS).run(None, tensors)
    assert got.dtype == kind
    np.testing.assert_array_equal(got, plain(tensors, SPEC))
    exact = reference(tensors, SPEC)
    # A handful of roundings, of tensors that are no larger than the largest here.
    assert np.abs(got - exact).max() <= 16 * np.finfo(kind).eps * np.abs(exact).max()


def test_attributes_survive_a_node() -> None:
    attention = MaskedAttentionSpec.of_mask(
        np.eye(6, dtype=bool), 2, slopes=(1.0, 0.5), columns=3, scale=0.25
    )
    spec = MaskedAttentionBlockSpec(attention, epsilon=2.0**-10)
    node = spec.node(list(INPUTS), "out", "block")
    assert (node.domain, node.op_type, list(node.input)) == (
        DOMAIN,
        "MaskedAttentionBlock",
        list(INPUTS),
    )
    assert MaskedAttentionBlockSpec.from_node(node) == spec


def test_bad_attributes_are_named() -> None:
    good = SPEC.attributes()
    for change, reason in (
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"q_scale": 1.0, "k_scale": 1.0, "v_scale": 1.0, "out_scale": 1.0}, "int8"),
        ({"heads": 0}, "heads is 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            MaskedAttentionBlockSpec.from_attributes(good | change)
    del good["epsilon"]
    with pytest.raises(ValueError, match="epsilon is missing"):
        MaskedAttentionBlockSpec.from_attributes(good)
    with pytest.raises(ValueError, match="int8"):
        MaskedAttentionBlockSpec(
            MaskedAttentionSpec.of_mask(ALLOWED, 2, int8=Int8Scales(1.0, 1.0, 1.0, 1.0))
        )
    other = helper.make_node("Relu", ["x"], ["y"], "other")
    with pytest.raises(ValueError, match="other is a"):
        MaskedAttentionBlockSpec.from_node(other)


@pytest.mark.parametrize(
    ("keys", "heads", "width", "reason"),
    [
        (128, 4, 256, ""),
        (129, 4, 256, "M is 129"),
        (20, 8, 512, "W is 512"),
        (20, 2, 256, "256 / 2"),
        (20, 5, 80, ""),
        (20, 3, 80, "80 / 3"),
    ],
)
def test_what_no_kernel_takes_is_said(keys: int, heads: int, width: int, reason: str) -> None:
    spec = MaskedAttentionBlockSpec(
        MaskedAttentionSpec.of_mask(np.ones((16, keys), dtype=bool), heads)
    )
    said = why_not_fused(width, spec)
    assert reason in said
    assert bool(said) == bool(reason)
