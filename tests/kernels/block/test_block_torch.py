"""The fused block against PyTorch's CrossAttentionBlock, whose attention it replaces."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from metal_edge.export.masked_attention import MaskedAttentionSpec
from metal_edge.export.masked_attention_block import INPUTS, MaskedAttentionBlockSpec
from metal_edge.models.features import allowed_tokens as allowed_neighbours
from metal_edge.models.features import attention_bias
from metal_edge.models.shapes import Shape
from metal_edge.models.zeroleak import CrossAttentionBlock, allowed_tokens, mask_bias
from tools.kernels.block import Block, Case


def attention_only(width: int, heads: int) -> CrossAttentionBlock:
    """A block with trained-looking weights, in float16 numbers, whose MLP adds nothing."""
    torch.manual_seed(0)
    block = CrossAttentionBlock(width, heads, 1).eval()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            size = 1.0 if parameter.ndim == 1 else width**-0.5
            parameter.copy_((torch.randn_like(parameter) * size).half())
            if name.startswith("mlp.2"):
                parameter.zero_()
    return block


def case_of(
    module: CrossAttentionBlock,
    queries: torch.Tensor,
    content: torch.Tensor,
    spec: MaskedAttentionSpec,
) -> Case:
    """The same as a call of the operator; the query projection is rounded to float16."""
    exact = deepcopy(module).double()
    with torch.inference_mode():
        query = exact.query(exact.norm_query(queries.double()))
    values = (
        query, content, queries, module.norm_content.weight, module.norm_content.bias,
        module.key_value.weight, module.key_value.bias, module.project.weight, module.project.bias,
    )  # fmt: skip
    tensors = {n: v.detach().half().numpy() for n, v in zip(INPUTS, values, strict=True)}
    return Case(tensors, MaskedAttentionBlockSpec(spec, module.norm_content.eps))


@pytest.mark.parametrize("first", [True, False], ids=["positions", "later queries"])
@pytest.mark.parametrize("model", ["zeroleak", "features"])
def test_as_exact_as_pytorch_in_float16(block: Block, model: str, first: bool) -> None:
    width, heads = 64, 4
    if model == "zeroleak":
        allowed = allowed_tokens(4, (Shape.SQUARES, Shape.ROWS), 0)
        bias, spec = mask_bias(allowed), MaskedAttentionSpec.of_mask(allowed, heads)
    else:
        allowed, bias = allowed_neighbours(6, 1), attention_bias(6, 1, heads)
        spec = MaskedAttentionSpec.of_mask(allowed, heads, slopes=(2.0, 1.0, 0.0, 0.0), columns=6)
    module = attention_only(width, heads)
    targets, tokens = allowed.shape
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(1 if first else 2, targets, width, generator=generator).half()
    content = torch.randn(2, tokens, width, generator=generator).half()
    with torch.inference_mode():
        half = deepcopy(module).half()(queries, content, bias.half()).double().numpy()
        exact = deepcopy(module).double()(queries.double(), content.double(), bias.double())
    got = block.run_host(case_of(module, queries, content, spec))
    error = np.abs(got - exact.numpy()).max()
    assert error <= 2 * np.abs(half - exact.numpy()).max()
