"""What the planner takes and refuses, the tiles it packs, and the pointers the launcher checks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_cases import Case, make_case, masks

from metal_edge.export.masked_attention import Fill, pack_mask
from tools.kernels.attention import Buffers, HostLibrary, LaunchError, Problem, prepare

INVALID_VALUE, MISALIGNED_ADDRESS = 1, 716  # cudaError_t
SMALLEST_SHARED = 99 * 1024  # bytes a block can have on any GPU since sm_80


def good(kind: type = np.float16, **others: int) -> Problem:
    """A supported problem, with these fields changed."""
    call = prepare_unchecked(make_case(kind, batch=2, heads=2, queries=20, keys=20))
    for name, value in others.items():
        setattr(call, name, value)
    return call


def prepare_unchecked(case: Case) -> Problem:
    class Careless(HostLibrary):
        def __init__(self) -> None:
            pass

        def refusal(self, problem: Problem) -> None:
            return None

        def tiles(self, problem: Problem, mask: np.ndarray) -> np.ndarray:
            return np.zeros(1, np.uint32)

    return prepare(Careless(), case.tensors, case.spec).problem


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        (np.float16, {"type": 3}, "type is 3, above 2"),
        (np.float16, {"fill": -1}, "fill is -1, below 0"),
        (np.float16, {"batch": 0}, "batch is 0, below 1"),
        (np.float16, {"batch": 65536}, "batch is 65536, above 65535"),
        (np.float16, {"heads": 0}, "heads is 0, below 1"),
        (np.float16, {"queries": 4097}, "N is 4097, above 4096"),
        (np.float16, {"keys": 0}, "M is 0, below 1"),
        (np.float16, {"head_dim": 8}, "head_dim is 8, below 16"),
        (np.float16, {"head_dim": 40}, "head_dim is 40, not a multiple of 16"),
        (np.float16, {"head_dim": 272}, "head_dim is 272, above 256"),
        (np.int8, {"head_dim": 144}, "head_dim is 144, above 128"),
        (np.float16, {"head_dim": 64}, "head_dim 64 is not compiled into this library"),
        (np.float32, {"head_dim": 272}, "head_dim is 272, above 256"),
        (np.float16, {"mask_heads": 3}, "the mask's G is 3, neither 1 nor the number of heads, 2"),
        (np.float16, {"columns": -1}, "columns is -1, below 0"),
        (np.float16, {"columns": 4, "keys": 19}, "as many keys as queries: N is 20, M is 19"),
        (np.float16, {"scale": np.nan}, "scale is nan, not finite"),
        (np.float16, {"scale": np.inf}, "scale is inf, not finite"),
        (np.int8, {"q_scale": 0.0}, "q_scale is 0, not a positive number"),
        (np.int8, {"k_scale": np.nan}, "k_scale is nan, not a positive number"),
        (np.int8, {"v_scale": -1.0}, "v_scale is -1, not a positive number"),
        (np.int8, {"out_scale": np.inf}, "out_scale is inf, not a positive number"),
        (np.int8, {"q_scale": 1e30, "k_scale": 1e30}, "scale * q_scale * k_scale is inf"),
        (np.int8, {"v_scale": 1e30, "out_scale": 1e-30}, "v_scale / out_scale is inf"),
        (np.float16, {"q_row": 63}, "q_row is 63, below the row's width 64"),
        (np.float16, {"k_row": 68}, "k_row is 68 elements, not a multiple of 16 bytes"),
        (np.float32, {"v_row": 66}, "v_row is 66 elements, not a multiple of 16 bytes"),
        (np.int8, {"out_row": 72}, "out_row is 72 elements, not a multiple of 16 bytes"),
        (np.float16, {"k_batch": -8}, "k_batch is -8, below 0"),
        (np.float16, {"v_batch": 4}, "v_batch is 4 elements, not a multiple of 16 bytes"),
        (np.float16, {"out_batch": 0}, "out_batch is 0: images of 1280 elements would overlap"),
        (np.float16, {"q_row": 2**62}, "q_row is 4611686018427387904, above 1000000000000000"),
    ],
)
def test_refusals_name_the_value(
    library: HostLibrary, kind: type, changes: dict[str, int], text: str
) -> None:
    problem = good(kind, **changes)
    refusal = library.refusal(problem)
    assert refusal is not None
    assert text in refusal
    with pytest.raises(LaunchError, match=f"status {INVALID_VALUE}$"):
        library.launch(problem, Buffers())


def test_a_good_problem_is_not_refused(library: HostLibrary) -> None:
    for kind in (np.float16, np.float32, np.int8):
        assert library.refusal(good(kind)) is None


@pytest.mark.parametrize(
    ("kind", "keys", "head_dim", "kernel"),
    [
        (np.float16, 128, 32, "f16_short_d32"),
        (np.float16, 129, 32, "f16_flash_d32"),
        (np.float16, 8, 256, "f16_plain_d256"),
        (np.float16, 300, 144, "f16_plain_d256"),
        (np.int8, 1, 16, "s8_short_d16"),
        (np.int8, 4096, 128, "s8_flash_d128"),
        (np.float32, 10, 16, "f32_plain_d32"),
        (np.float32, 10, 48, "f32_plain_d64"),
        (np.float32, 10, 80, "f32_plain_d128"),
        (np.float32, 10, 256, "f32_plain_d256"),
    ],
)
def test_who_takes_what(
    library: HostLibrary, kind: type, keys: int, head_dim: int, kernel: str
) -> None:
    case = make_case(kind, heads=2, batch=3, queries=70, keys=keys, head_dim=head_dim)
    problem = prepare(library, case.tensors, case.spec).problem
    plan = library.plan(problem)
    assert plan.kernel.decode() == f"masked_attention_{kernel}"
    rows = {"flash": 64, "short": 16, "plain": 4}[kernel.split("_")[1]]
    assert list(plan.grid) == [-(-70 // rows), 2, 3]
    assert plan.threads == 128
    assert plan.shared_bytes <= SMALLEST_SHARED


@settings(derandomize=True, max_examples=60)
@given(data=st.data(), queries=st.integers(1, 300), keys=st.integers(1, 4096))
def test_tiles_are_those_that_a_mask_reaches(
    library: HostLibrary, data: st.DataObject, queries: int, keys: int
) -> None:
    heads = 2
    allowed = data.draw(masks(heads, queries, keys))
    fill = data.draw(st.sampled_from(Fill))
    problem = Problem(
        heads=heads, queries=queries, keys=keys, mask_heads=len(allowed), fill=fill is Fill.ZERO
    )
    words = library.tiles(problem, pack_mask(allowed))
    wanted = np.ones_like(allowed) if fill is Fill.ZERO else allowed
    padding = ((0, 0), (0, -queries % 64), (0, -keys % 64))
    blocks = np.pad(wanted, padding).reshape(len(allowed), -(-queries // 64), 64, -1, 64)
    assert words.tobytes() == pack_mask(blocks.any(axis=(2, 4))).tobytes()


@pytest.mark.parametrize("keys", [1, 31, 33, 70])
def test_padding_bits_are_refused(library: HostLibrary, keys: int) -> None:
    mask = pack_mask(np.ones((1, 3, keys), np.bool_))
    problem = Problem(heads=1, queries=3, keys=keys, mask_heads=1)
    assert library.tiles(problem, mask).any()
    mask[0, 1, -1] |= np.uint32(1 << keys % 32)
    with pytest.raises(ValueError, match="beyond its last key"):
        library.tiles(problem, mask)


@pytest.mark.parametrize("name", ["q", "k", "v", "out", "mask", "tiles", "slopes"])
def test_the_launcher_checks_pointers(library: HostLibrary, name: str) -> None:
    case = make_case(np.float16, slopes=(1.0,), columns=4)
    call = prepare(library, case.tensors, case.spec)
    library.launch(call.problem, call.buffers)
    address = getattr(call.buffers, name)
    setattr(call.buffers, name, address + 2)
    with pytest.raises(LaunchError, match=f"status {MISALIGNED_ADDRESS}$"):
        library.launch(call.problem, call.buffers)
    setattr(call.buffers, name, None)
    with pytest.raises(LaunchError, match=f"status {INVALID_VALUE}$"):
        library.launch(call.problem, call.buffers)


def test_slopes_without_columns_are_refused(library: HostLibrary) -> None:
    case = make_case(np.float16)
    call = prepare(library, case.tensors, case.spec)
    slopes = np.ones(1, np.float32)
    call.buffers.slopes = slopes.ctypes.data
    with pytest.raises(LaunchError, match=f"status {INVALID_VALUE}$"):
        library.launch(call.problem, call.buffers)
