"""Our operators for `onnx.reference`: graphs that hold it run on any machine, slowly.

`ReferenceEvaluator(model, new_ops=REFERENCE_OPS)`; ONNX Runtime refuses operators that nobody
registered.
"""

from __future__ import annotations

from typing import Any

from onnx.reference.op_run import OpRun

from metal_edge.export.masked_attention import Array, MaskedAttentionSpec, plain
from metal_edge.export.masked_attention_block import INPUTS, MaskedAttentionBlockSpec
from metal_edge.export.masked_attention_block import plain as plain_block
from metal_edge.export.operator_node import DOMAIN


class MaskedAttention(OpRun):
    """See `masked_attention.plain`, which computes it."""

    op_domain = DOMAIN

    def _run(self, *tensors: Array, **_attributes: Any) -> tuple[Array]:
        return (plain(list(tensors), MaskedAttentionSpec.from_node(self.onnx_node)),)


class MaskedAttentionBlock(OpRun):
    """See `masked_attention_block.plain`, which computes it."""

    op_domain = DOMAIN

    def _run(self, *tensors: Array, **_attributes: Any) -> tuple[Array]:
        named = dict(zip(INPUTS, tensors, strict=True))
        return (plain_block(named, MaskedAttentionBlockSpec.from_node(self.onnx_node)),)


REFERENCE_OPS = [MaskedAttention, MaskedAttentionBlock]
