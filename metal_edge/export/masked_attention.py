"""The operator MaskedAttention in NumPy: attributes, mask bits, and what it computes.

kernels/README.md specifies it. `reference` is the definition, in float64; `plain` does the same
in the tensors' own precision, step by step, without any of the kernels' cleverness: the measure
of how far a kernel may be off. Needs NumPy only, so that a device can use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from metal_edge.export.operator_node import NodeSpec

OP = "MaskedAttention"
VERSION = 1
MAX_TOKENS = 4096
_WORD = 32
_LOWEST, _HIGHEST = -128, 127

Array = NDArray[Any]
Mask = NDArray[np.bool_]


class Fill(StrEnum):
    """What becomes of a forbidden key.

    EXCLUDE: its weight is 0. ZERO: its score becomes 0 and takes part, as MeTAL's paper writes
    (sec. 3.2.1).
    """

    EXCLUDE = "exclude"
    ZERO = "zero"


@dataclass(frozen=True, slots=True)
class Int8Scales:
    """Real value = scale * integer, zero point 0."""

    q: float
    k: float
    v: float
    out: float


@dataclass(frozen=True, slots=True)
class MaskedAttentionSpec(NodeSpec):
    """The attributes of one MaskedAttention.

    Attributes:
        heads: number of heads.
        mask_shape: (G, N, M), G = 1 or `heads`.
        mask: hex of the mask's bits, see `mask_to_hex`.
        scale: multiplies the scores; None is 1/sqrt(head_dim).
        fill: what becomes of forbidden keys.
        slopes: one per head, or none; score -= slope * distance of the tokens on their grid.
        columns: of that grid; 0 without slopes.
        int8: scales of int8 tensors; None for float tensors.

    Raises:
        ValueError: attributes that contradict each other; names the value.
    """

    op_type: ClassVar[str] = OP

    heads: int
    mask_shape: tuple[int, int, int]
    mask: str
    scale: float | None = None
    fill: Fill = Fill.EXCLUDE
    slopes: tuple[float, ...] = ()
    columns: int = 0
    int8: Int8Scales | None = None

    def __post_init__(self) -> None:
        groups, queries, keys = self.mask_shape
        if self.heads < 1:
            raise ValueError(f"heads is {self.heads}, not 1 or more")
        if groups not in {1, self.heads}:
            raise ValueError(f"mask_shape has {groups} masks, not 1 or {self.heads}")
        if not (1 <= queries <= MAX_TOKENS and 1 <= keys <= MAX_TOKENS):
            raise ValueError(f"mask_shape is {queries} x {keys}, limits are 1 to {MAX_TOKENS}")
        mask_from_hex(self.mask, self.mask_shape)
        if self.scale is not None and not math.isfinite(self.scale):
            raise ValueError(f"scale is {self.scale}")
        self._check_slopes()
        if self.int8 is not None:
            for field in fields(self.int8):
                value = getattr(self.int8, field.name)
                if not (math.isfinite(value) and value > 0):
                    raise ValueError(f"{field.name}_scale is {value}, not above 0")

    def _check_slopes(self) -> None:
        if not self.slopes:
            if self.columns:
                raise ValueError(f"columns is {self.columns}, but there are no slopes")
            return
        if len(self.slopes) != self.heads:
            raise ValueError(f"there are {len(self.slopes)} slopes for {self.heads} heads")
        if not all(math.isfinite(slope) for slope in self.slopes):
            raise ValueError(f"a slope of {self.slopes} is not finite")
        if self.columns < 1:
            raise ValueError(f"columns is {self.columns}, slopes need 1 or more")
        if self.mask_shape[1] != self.mask_shape[2]:
            raise ValueError(f"slopes need as many queries as keys, not {self.mask_shape[1:]}")

    @classmethod
    def of_mask(cls, allowed: Mask, heads: int, **others: Any) -> Self:
        """From bool [N, M] or [G, N, M], True where looking is allowed."""
        mask = allowed[None] if allowed.ndim == 2 else allowed
        groups, queries, keys = mask.shape
        return cls(heads, (groups, queries, keys), mask_to_hex(mask), **others)

    @property
    def allowed(self) -> Mask:
        """bool [G, N, M]."""
        return mask_from_hex(self.mask, self.mask_shape)

    @property
    def bias(self) -> NDArray[np.float64] | None:
        """float64 [heads, N, M] that slopes add to the scores; None without slopes."""
        if not self.slopes:
            return None
        distance = grid_distances(self.mask_shape[1], self.columns)
        return -np.asarray(self.slopes, np.float64)[:, None, None] * distance

    def attributes(self) -> dict[str, Any]:
        """The node's attributes; what has its default is left out."""
        found: dict[str, Any] = {
            "heads": self.heads,
            "mask_shape": list(self.mask_shape),
            "mask": self.mask,
            "fill": self.fill.value,
        }
        if self.scale is not None:
            found["scale"] = self.scale
        if self.slopes:
            found |= {"slopes": list(self.slopes), "columns": self.columns}
        if self.int8 is not None:
            found |= {f"{f.name}_scale": getattr(self.int8, f.name) for f in fields(self.int8)}
        return found

    @classmethod
    def from_attributes(cls, found: dict[str, Any]) -> Self:
        """Reads a node's attributes.

        Raises:
            ValueError: one is missing, unknown or senseless; names it.
        """
        rest = dict(found)
        given = {f.name: rest.pop(f"{f.name}_scale", None) for f in fields(Int8Scales)}
        absent = [name for name, value in given.items() if value is None]
        if absent and len(absent) < len(given):
            raise ValueError(f"{absent[0]}_scale is missing: int8 needs all four")
        try:
            heads, mask, shape = rest.pop("heads"), rest.pop("mask"), rest.pop("mask_shape")
        except KeyError as error:
            raise ValueError(f"attribute {error.args[0]} is missing") from error
        if len(shape) != 3:
            raise ValueError(f"mask_shape has {len(shape)} numbers, not 3")
        spec = cls(
            heads=int(heads),
            mask_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            mask=mask,
            scale=rest.pop("scale", None),
            fill=Fill(rest.pop("fill", Fill.EXCLUDE)),
            slopes=tuple(rest.pop("slopes", ())),
            columns=int(rest.pop("columns", 0)),
            int8=None if absent else Int8Scales(**given),
        )
        if rest:
            raise ValueError(f"unknown attribute {min(rest)}")
        return spec


def pack_mask(allowed: Mask) -> NDArray[np.uint32]:
    """bool [G, N, M] -> uint32 [G, N, ceil(M / 32)]: key j is bit j % 32 of word j // 32."""
    octets = np.packbits(allowed, axis=-1, bitorder="little")
    missing = -octets.shape[-1] % 4
    padded = np.pad(octets, [(0, 0)] * (allowed.ndim - 1) + [(0, missing)])
    return np.ascontiguousarray(padded).view("<u4").astype(np.uint32)


def unpack_mask(words: NDArray[np.uint32], keys: int) -> Mask:
    """Inverse of `pack_mask`.

    Raises:
        ValueError: not as many words as `keys` take, or a padding bit that is 1.
    """
    if words.shape[-1] != -(-keys // _WORD):
        raise ValueError(f"{words.shape[-1]} words do not hold {keys} keys")
    octets = np.ascontiguousarray(words.astype("<u4")).view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little").astype(np.bool_)
    if bits[..., keys:].any():
        raise ValueError(f"a padding bit of the mask, beyond key {keys - 1}, is 1")
    return bits[..., :keys]


def mask_to_hex(allowed: Mask) -> str:
    """bool [G, N, M] -> the attribute `mask`: the bytes of `pack_mask`, little endian."""
    return pack_mask(allowed).astype("<u4").tobytes().hex()


def mask_from_hex(text: str, shape: tuple[int, int, int]) -> Mask:
    """Inverse of `mask_to_hex`.

    Raises:
        ValueError: not lower-case hex, of another length, or a padding bit that is 1.
    """
    groups, queries, keys = shape
    words = -(-keys // _WORD)
    wanted = groups * queries * words * 8
    if len(text) != wanted:
        raise ValueError(f"mask has {len(text)} hex digits, {shape} takes {wanted}")
    if set(text) - set("0123456789abcdef"):
        raise ValueError("mask is not lower-case hex")
    values = np.frombuffer(bytes.fromhex(text), "<u4").reshape(groups, queries, words)
    return unpack_mask(values.astype(np.uint32), keys)


def grid_distances(tokens: int, columns: int) -> NDArray[np.float64]:
    """float64 [N, N]: Euclidean distances of tokens that fill a grid row by row."""
    row, column = np.divmod(np.arange(tokens), columns)
    return np.asarray(np.hypot(row[:, None] - row, column[:, None] - column))


def split_inputs(tensors: list[Array], spec: MaskedAttentionSpec) -> tuple[Array, Array, Array]:
    """Query [B or 1, N, W], key and value [B, M, W] from a node's one, two or three inputs.

    Raises:
        ValueError: shapes or types that do not go together; names them.
    """
    if len(tensors) == 1:
        parts = [tensors[0]] if tensors[0].shape[-1] % 3 else np.split(tensors[0], 3, axis=-1)
    elif len(tensors) == 2 and tensors[1].shape[-1] % 2 == 0:
        parts = [tensors[0], *np.split(tensors[1], 2, axis=-1)]
    else:
        parts = list(tensors)
    shapes = [part.shape for part in parts]
    if len(parts) != 3 or any(len(shape) != 3 for shape in shapes):
        raise ValueError(f"inputs of shapes {[t.shape for t in tensors]} are no Q, K, V")
    (batch, queries, width), key, value = shapes
    if key != value or key[2] != width or batch not in {1, key[0]}:
        raise ValueError(f"query, key and value have shapes {shapes}")
    if (queries, key[1]) != spec.mask_shape[1:]:
        raise ValueError(f"the mask is for {spec.mask_shape[1:]} tokens, not {(queries, key[1])}")
    if width % spec.heads:
        raise ValueError(f"width {width} is not divisible by {spec.heads} heads")
    types = {part.dtype for part in parts}
    if len(types) != 1 or (types == {np.dtype(np.int8)}) != (spec.int8 is not None):
        raise ValueError(f"inputs are {sorted(map(str, types))}, int8 scales are {spec.int8}")
    return parts[0], parts[1], parts[2]


def reference(tensors: list[Array], spec: MaskedAttentionSpec) -> NDArray[np.float64]:
    """The operator by its definition, in float64.

    Args:
        tensors: one, two or three inputs as kernels/README.md lists them.
        spec: the attributes.

    Returns:
        float64 [B, N, W], unrounded; for int8 real values, not yet divided by the output's scale.
    """
    q, k, v = (part.astype(np.float64) for part in split_inputs(tensors, spec))
    if spec.int8 is not None:
        q, k, v = q * spec.int8.q, k * spec.int8.k, v * spec.int8.v
    query, key, value = (_heads(part, spec.heads) for part in (q, k, v))
    with np.errstate(all="ignore"):  # NaN and infinity are passed on, not warned of
        weights = _softmax(_scores(query, key, spec, np.float64(1)), spec)
        return _tokens(_mix(weights, value, spec))


def plain(tensors: list[Array], spec: MaskedAttentionSpec) -> Array:
    """The operator in its own precision, one plain step after the other.

    Scores and softmax in float32; float16 and int8 round the weights to float16; products
    accumulate in float32.

    Returns:
        [B, N, W] of the inputs' type.
    """
    q, k, v = (_heads(part, spec.heads) for part in split_inputs(tensors, spec))
    kind, one = q.dtype, np.float32(1)
    single = np.float32
    with np.errstate(all="ignore"):
        if spec.int8 is not None:
            factor = single(spec.int8.q) * single(spec.int8.k)
            scores = _scores(q.astype(np.int32), k.astype(np.int32), spec, factor)
        else:
            scores = _scores(q.astype(single), k.astype(single), spec, one)
        weights = _softmax(scores, spec)
        if kind != np.float32:
            weights = weights.astype(np.float16).astype(single)
        mixed = _tokens(_mix(weights, v.astype(single), spec))
        if spec.int8 is None:
            return mixed.astype(kind)
        steps = mixed * (single(spec.int8.v) / single(spec.int8.out))
        return np.clip(np.rint(steps), _LOWEST, _HIGHEST).astype(np.int8)


def _scores(query: Array, key: Array, spec: MaskedAttentionSpec, factor: Any) -> Array:
    """[B, heads, N, M] in the type of `factor`, which multiplies the products."""
    kind = np.asarray(factor).dtype
    scale = query.shape[-1] ** -0.5 if spec.scale is None else spec.scale
    scores = (query @ key.swapaxes(-1, -2)).astype(kind) * (factor * kind.type(scale))
    if spec.bias is not None:
        scores = scores + spec.bias.astype(kind)
    return scores  # type: ignore[no-any-return]  # NumPy says Any


def _softmax(scores: Array, spec: MaskedAttentionSpec) -> Array:
    """Weights, exactly 0 where a key is excluded; a row without allowed keys is all 0.

    A score that is not finite makes its row NaN: an infinite key whose score is -inf would
    otherwise get weight 0, and nobody would know.
    """
    allowed = spec.allowed
    if spec.fill is Fill.ZERO:
        scores = np.where(allowed, scores, scores.dtype.type(0))
        allowed = np.ones_like(allowed)
    scores = np.where(np.isfinite(scores), scores, np.nan)
    least = np.finfo(scores.dtype).min
    highest = np.where(allowed, scores, least).max(axis=-1, keepdims=True)
    parts = np.where(allowed, np.exp(scores - highest), 0).astype(scores.dtype)
    total = parts.sum(axis=-1, keepdims=True)
    return parts / np.where(total == 0, scores.dtype.type(1), total)  # type: ignore[no-any-return]


def _mix(weights: Array, value: Array, spec: MaskedAttentionSpec) -> Array:
    """weights @ value, without the NaN and infinities of keys that a row may not look at."""
    wild = ~np.isfinite(value)
    if spec.fill is Fill.ZERO or not wild.any():
        return weights @ value
    reached = spec.allowed.astype(np.float32) @ wild.astype(np.float32) > 0
    return np.where(reached, weights @ value, weights @ np.where(wild, 0, value))


def _heads(part: Array, heads: int) -> Array:
    """[B, N, W] -> [B, heads, N, W / heads]."""
    batch, tokens, width = part.shape
    return part.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3)


def _tokens(mixed: Array) -> Array:
    """Inverse of `_heads`."""
    batch, heads, tokens, each = mixed.shape
    return mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * each)
