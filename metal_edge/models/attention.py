"""Masked multi-head self-attention, as in MeTAL sec. 3.2.1, with the mask rule as a choice."""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor, nn


class MaskRule(StrEnum):
    """What a patch's reconstruction may look at.

    Three rules concern the attention score between a token and itself:

    OFF: nothing, a plain ViT block. ZERO: the score becomes 0 before the softmax, as the paper
    writes ("forces the dot product ... to be set to 0"). NEG_INF: the score becomes -1e4, so
    the weight underflows to an exact 0 in FP32 and FP16 and no NaN can arise in a quantiser.
    None of the three hides a patch from its own reconstruction: the query still carries it.

    ZEROLEAK is another construction, with queries that carry no content: see `zeroleak`.
    """

    OFF = "off"
    ZERO = "zero"
    NEG_INF = "neg_inf"
    ZEROLEAK = "zeroleak"


MASKED_SCORE = -1e4


class MaskedSelfAttention(nn.Module):
    """Multi-head attention over [B, N, D] whose diagonal obeys a MaskRule.

    Args:
        dim: token width D, divisible by `heads`.
        heads: number of heads.
        tokens: N, fixed because the mask is a constant of the graph.
        rule: treatment of the diagonal; self-attention cannot be ZEROLEAK.

    Raises:
        ValueError: an indivisible width, or that rule.
    """

    keep: Tensor
    add: Tensor

    def __init__(self, dim: int, heads: int, tokens: int, rule: MaskRule) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} is not divisible by {heads} heads")
        if rule is MaskRule.ZEROLEAK:
            raise ValueError("no mask keeps self-attention from leaking: use zeroleak's blocks")
        self.heads = heads
        self.scale = 1.0 / math.sqrt(dim // heads)
        self.rule = rule
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.project = nn.Linear(dim, dim)
        eye = torch.eye(tokens)
        self.register_buffer("keep", 1.0 - eye, persistent=False)
        self.register_buffer("add", MASKED_SCORE * eye, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        batch, tokens, dim = x.shape
        qkv = self.query_key_value(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, D/heads]
        score = (query * self.scale) @ key.transpose(-2, -1)  # [B, heads, N, N]
        if self.rule is MaskRule.ZERO:
            score = score * self.keep
        elif self.rule is MaskRule.NEG_INF:
            score = score + self.add
        mixed = score.softmax(dim=-1) @ value  # [B, heads, N, D/heads]
        return self.project(mixed.transpose(1, 2).reshape(batch, tokens, dim))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: masked attention, then an MLP of `mlp_dim`, both residual."""

    def __init__(self, dim: int, heads: int, tokens: int, mlp_dim: int, rule: MaskRule) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = MaskedSelfAttention(dim, heads, tokens, rule)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))  # type: ignore[no-any-return]
