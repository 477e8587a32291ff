"""Which blocks are refused, and what a launch makes of bad pointers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fused_blocks import random_case

from metal_edge.export.masked_attention import MaskedAttentionSpec
from metal_edge.export.masked_attention_block import MaskedAttentionBlockSpec, why_not_fused
from tools.kernels.block import Block, Problem

INVALID_VALUE, MISALIGNED_ADDRESS = 1, 716
SHARED_BYTES_OF_SM_87 = 163 * 1024

GOOD = {
    "batch": 1, "heads": 4, "head_dim": 64, "queries": 64, "keys": 72, "mask_heads": 1,
    "scale": 0.125, "epsilon": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head_dim", 8), ("head_dim", 48), ("head_dim", 128), ("heads", 0), ("heads", 5),
        ("heads", -1), ("queries", 0), ("queries", 4097), ("keys", 0), ("keys", 129),
        ("batch", 0), ("batch", 65536), ("mask_heads", 2), ("mask_heads", 0), ("fill", 2),
        ("columns", -1), ("columns", 8), ("scale", float("nan")), ("scale", float("inf")),
        ("epsilon", 0.0), ("epsilon", -1e-5), ("epsilon", float("nan")),
    ],
)  # fmt: skip
def test_what_no_kernel_takes_is_refused_with_its_value(
    block: Block, field: str, value: Any
) -> None:
    assert block.refusal(Problem(**GOOD)) == ""
    problem = Problem(**GOOD | {field: value})
    reason = block.refusal(problem)
    assert re.search(rf"(?<![\d.]){re.escape(f'{value:g}')}(?![\d.])", reason), reason
    arrays = block.memory(random_case(0, heads=4, head_dim=64))
    assert block.launch(problem, arrays) == INVALID_VALUE
    assert np.isnan(arrays["out"]).all(), "it ran all the same"


@given(
    keys=st.sampled_from((1, 127, 128, 129, 256)),
    heads=st.integers(1, 20),
    head_dim=st.sampled_from((8, 16, 24, 32, 48, 64, 80, 128)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_surgery_refuses_what_the_launcher_refuses(
    block: Block, keys: int, heads: int, head_dim: int
) -> None:
    mask = MaskedAttentionSpec.of_mask(np.ones((64, keys), np.bool_), heads)
    said = why_not_fused(heads * head_dim, MaskedAttentionBlockSpec(mask))
    problem = Problem(**GOOD | {"keys": keys, "heads": heads, "head_dim": head_dim})
    assert bool(said) == bool(block.refusal(problem)), (said, block.refusal(problem))


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (16, 16), (8, 32), (1, 64), (4, 64)])
@pytest.mark.parametrize("keys", [1, 72, 128])
def test_what_is_taken_fits_a_thread_block_of_orin(
    block: Block, heads: int, head_dim: int, keys: int
) -> None:
    problem = Problem(**GOOD | {"heads": heads, "head_dim": head_dim, "keys": keys})
    assert block.refusal(problem) == ""
    assert block.plan(problem).shared_bytes <= SHARED_BYTES_OF_SM_87


def test_one_thread_block_for_16_queries_of_a_head_of_an_image(block: Block) -> None:
    plan = block.plan(Problem(**GOOD | {"batch": 3, "queries": 65}))
    assert (plan.kernel, list(plan.grid)) == (b"masked_attention_block", [5, 4, 3])


@pytest.mark.parametrize("name", ["query", "b_out", "out", "mask", "workspace", "arrivals"])
def test_null_and_misaligned_pointers_are_refused(block: Block, name: str) -> None:
    case = random_case(0)
    arrays = block.memory(case)
    gone = {other: array for other, array in arrays.items() if other != name}
    assert block.launch(case.problem, gone) == INVALID_VALUE
    room = np.zeros(arrays[name].nbytes + 32, np.uint8)
    start = -room.ctypes.data % 16 + 8
    assert block.launch(case.problem, arrays | {name: room[start:]}) == MISALIGNED_ADDRESS
    assert np.isnan(arrays["out"]).all(), "it ran all the same"


def test_slopes_are_needed_with_columns(block: Block) -> None:
    case = random_case(0, queries=9, keys=9, slopes=(1.0, 0.5), columns=3)
    arrays = block.memory(case)
    del arrays["slopes"]
    assert block.launch(case.problem, arrays) == INVALID_VALUE
