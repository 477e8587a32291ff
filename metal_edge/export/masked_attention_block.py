"""The operator MaskedAttentionBlock in NumPy: attributes, and what it computes.

kernels/README.md specifies it. As in `masked_attention`, `reference` is the definition, in
float64, and `plain` does one step after the other in the tensors' own precision, the way separate
kernels would. Needs NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from metal_edge.export.masked_attention import Array, MaskedAttentionSpec
from metal_edge.export.masked_attention import plain as plain_attention
from metal_edge.export.masked_attention import reference as reference_attention
from metal_edge.export.operator_node import NodeSpec

OP = "MaskedAttentionBlock"
MAX_KEYS, MAX_WIDTH = 128, 256
HEAD_DIMS = (16, 32, 64)
INPUTS = ("query", "content", "residual", "gamma", "beta", "w_kv", "b_kv", "w_out", "b_out")


@dataclass(frozen=True, slots=True)
class MaskedAttentionBlockSpec(NodeSpec):
    """The attributes of one MaskedAttentionBlock.

    Attributes:
        attention: of the attention inside; without int8 scales.
        epsilon: of the LayerNorm, above 0.

    Raises:
        ValueError: a value out of range; names it.
    """

    op_type: ClassVar[str] = OP

    attention: MaskedAttentionSpec
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.attention.int8 is not None:
            raise ValueError("a MaskedAttentionBlock has no int8 scales")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon is {self.epsilon}, not above 0")

    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        return self.attention.attributes() | {"epsilon": self.epsilon}

    @classmethod
    def from_attributes(cls, found: dict[str, Any]) -> Self:
        """Reads a node's attributes.

        Raises:
            ValueError: one is missing, unknown or senseless; names it.
        """
        rest = dict(found)
        try:
            epsilon = float(rest.pop("epsilon"))
        except KeyError as error:
            raise ValueError("attribute epsilon is missing") from error
        return cls(MaskedAttentionSpec.from_attributes(rest), epsilon)


def why_not_fused(width: int, spec: MaskedAttentionBlockSpec) -> str:
    """Why no kernel takes a block of this W; empty if one does."""
    keys = spec.attention.mask_shape[2]
    head_dim = width // spec.attention.heads
    if keys > MAX_KEYS:
        return f"M is {keys}, more than {MAX_KEYS}"
    if width > MAX_WIDTH:
        return f"W is {width}, more than {MAX_WIDTH}"
    if width % spec.attention.heads or head_dim not in HEAD_DIMS:
        return f"head_dim is {width} / {spec.attention.heads}, not one of {HEAD_DIMS}"
    return ""


def reference(tensors: dict[str, Array], spec: MaskedAttentionBlockSpec) -> NDArray[np.float64]:
    """The operator by its definition, in float64.

    Args:
        tensors: by name, see INPUTS: query [B or 1, N, W], content [B, M, W], residual
            [B or 1, N, W], gamma, beta [W], w_kv [2W, W], b_kv [2W], w_out [W, W], b_out [W].
        spec: the attributes.

    Returns:
        float64 [B, N, W].
    """
    t = {name: tensors[name].astype(np.float64) for name in INPUTS}
    with np.errstate(all="ignore"):  # NaN and infinity are passed on, not warned of
        content = _layer_norm(t["content"], spec.epsilon) * t["gamma"] + t["beta"]
        key_value = content @ t["w_kv"].T + t["b_kv"]
        mixed = reference_attention([t["query"], key_value], spec.attention)
        return np.asarray(t["residual"] + (mixed @ t["w_out"].T + t["b_out"]))


def plain(tensors: dict[str, Array], spec: MaskedAttentionBlockSpec) -> Array:
    """The operator as separate kernels compute it: float32 inside each, results rounded between.

    Args:
        tensors: as in `reference`, all of one type.
        spec: the attributes.

    Returns:
        [B, N, W] of the tensors' type.
    """
    kind = tensors["content"].dtype
    t = {name: tensors[name].astype(np.float32) for name in INPUTS}

    def rounded(x: Array) -> Array:
        return x.astype(kind).astype(np.float32)

    with np.errstate(all="ignore"):
        content = _layer_norm(t["content"], np.float32(spec.epsilon)) * t["gamma"] + t["beta"]
        key_value = (rounded(content) @ t["w_kv"].T + t["b_kv"]).astype(kind)
        mixed = plain_attention([tensors["query"], key_value], spec.attention)
        update = rounded(mixed.astype(np.float32) @ t["w_out"].T + t["b_out"])
        return (t["residual"] + update).astype(kind)


def _layer_norm(x: Array, epsilon: Any) -> Array:
    """Mean 0 and variance 1 over the last axis, in two passes."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)  # type: ignore[no-any-return]
