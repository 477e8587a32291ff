# mypy: ignore-errors
# ruff: noqa: N803, PLR0917 - Triton wants pointers and compile-time numbers like this
"""Flash attention under a bit mask, in Triton: it shares no line with the CUDA kernels.

Imported only by the worker, in the environment that has Triton.
"""

import triton
import triton.language as tl


@triton.jit
def masked_attention(
    QKV,  # [B, N, 3 W] float16, W = heads * D
    OUT,  # [B, N, W] float16
    MASK,  # [N, WORDS] int32: bit j % 32 of word j // 32: query i may look at key j
    N,
    heads,
    words,
    scale_log2e,  # softmax to base 2
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per ROWS queries of a head of an image."""
    image = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    width = heads * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = tl.arange(0, D)
    base = QKV + image * N * 3 * width + head * D
    query = tl.load(
        base + rows[:, None] * 3 * width + inside[None, :], mask=rows[:, None] < N, other=0.0
    )
    largest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    for first in range(0, N, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        there = columns < N
        at = base + columns[:, None] * 3 * width + inside[None, :]
        key = tl.load(at + width, mask=there[:, None], other=0.0)
        value = tl.load(at + 2 * width, mask=there[:, None], other=0.0)
        bits = tl.load(
            MASK + rows[:, None] * words + columns[None, :] // 32,
            mask=(rows[:, None] < N) & there[None, :],
            other=0,
        )
        keep = ((bits >> (columns[None, :] % 32)) & 1) != 0
        scores = tl.where(keep, tl.dot(query, tl.trans(key)) * scale_log2e, -1e30)
        new = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.where(keep, tl.exp2(scores - new[:, None]), 0.0)
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(tl.float16), value, sums * shrink[:, None])
        largest = new
    # A row without any allowed key gives zeros; a total of NaN stays one.
    result = tl.where(total[:, None] == 0.0, 0.0, sums / total[:, None])
    tl.store(
        OUT + (image * N + rows[:, None]) * width + head * D + inside[None, :],
        result.to(tl.float16),
        mask=rows[:, None] < N,
    )
