"""What nvcc makes of the kernels, interpreted with its checks of races, bounds and alignment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.attention_cases import Case, assert_close, make_case

from metal_edge.export.masked_attention import Fill
from tools.kernels.attention import HostLibrary, run_ptx
from tools.ptx import Module

SECTOR = 32  # bytes that global memory moves at once


def problems() -> Iterator[tuple[str, Case]]:
    """Every kernel at its edges; names for test ids."""
    random = np.random.default_rng(0)
    for kind in (np.float16, np.int8):
        name = np.dtype(kind).name
        for head_dim in (16, 32, 48, 128):
            yield f"{name} short {head_dim}", make_case(
                kind, batch=2, heads=2, queries=17, keys=(33, 128, 49, 7)[head_dim // 16 % 4],
                head_dim=head_dim, slack=(1, 16),
            )  # fmt: skip
            yield f"{name} flash {head_dim}", make_case(
                kind, heads=2, queries=70, keys=(129, 150, 200, 193)[head_dim // 16 % 4],
                head_dim=head_dim, slack=(1, 16),
            )  # fmt: skip
        yield f"{name} zero", make_case(kind, queries=66, keys=130, head_dim=48, fill=Fill.ZERO)
        yield f"{name} short zero", make_case(kind, queries=16, keys=65, fill=Fill.ZERO)
        yield (
            f"{name} bias",
            make_case(
                kind, heads=2, queries=129, keys=129, inputs=1, slopes=(0.5, 1.5), columns=11
            ),
        )
        yield (
            f"{name} short bias",
            make_case(kind, heads=2, queries=50, keys=50, inputs=1, slopes=(0.5, 1.5), columns=7),
        )
        sparse = np.zeros((2, 130, 200), np.bool_)
        sparse[0, :20, 150:], sparse[1, 100, 3] = True, True
        yield (
            f"{name} rows without keys",
            make_case(
                kind, batch=2, heads=2, queries=130, keys=200, allowed=sparse, shared_query=True
            ),
        )
    yield (
        "float16 stripe",
        make_case(
            np.float16, batch=2, queries=8, keys=8, head_dim=256, allowed=~np.eye(8, dtype=np.bool_)
        ),
    )
    for head_dim in (16, 48, 80, 144):
        yield f"float32 {head_dim}", make_case(
            np.float32, batch=2, heads=2, queries=9, keys=40, head_dim=head_dim, slack=(1, 16),
            allowed=random.random((2, 9, 40)) < 0.3, fill=list(Fill)[head_dim // 16 % 2],
        )  # fmt: skip
    yield (
        "float32 bias",
        make_case(np.float32, heads=2, queries=21, keys=21, inputs=2, slopes=(0.5, 1.5), columns=5),
    )


PROBLEMS = dict(problems())


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("ptx", "seed"), [("sm_87", 1), ("sm_110", None)], indirect=["ptx"])
def test_ptx_breaks_no_rule_and_computes_the_operator(
    library: HostLibrary, ptx: Module, name: str, seed: int | None
) -> None:
    case = PROBLEMS[name]
    result, _ = run_ptx(library, ptx, case.tensors, case.spec, seed=seed, slack=case.slack)
    assert_close(result, case)


@pytest.mark.parametrize("kind", [np.float16, np.int8])
def test_forbidden_tiles_are_not_read(library: HostLibrary, ptx: Module, kind: type) -> None:
    """Bytes of global memory that a launch touches: those of the tiles that the mask reaches."""
    tiles = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], np.bool_)
    allowed = tiles.repeat(64, 0).repeat(64, 1)
    case = make_case(kind, queries=128, keys=320, allowed=allowed)
    result, report = run_ptx(library, ptx, case.tensors, case.spec, profile=True)
    assert_close(result, case)
    row = 32 * np.dtype(kind).itemsize
    used = 2 * np.count_nonzero(tiles.any(axis=0)) * 64 * row + 128 * row
    mask = sum(np.count_nonzero(each) for each in tiles) * 64 * 8  # two words a row and tile
    words = 2 * 4
    assert report.statistics.unique_bytes == {"read": used + mask + words, "written": 128 * row}


@pytest.mark.parametrize("head_dim", [16, 32, 128])
@pytest.mark.parametrize("kind", [np.float16, np.int8])
@pytest.mark.parametrize("keys", [64, 128, 192])
def test_tiles_move_in_whole_sectors_and_meet_no_bank_twice(
    library: HostLibrary, ptx: Module, kind: type, keys: int, head_dim: int
) -> None:
    """Of the tensors, that is: a row's mask words are four or eight bytes of a sector.

    Sums of head dim 16 are stored without conflicts, and loaded with some.
    """
    case = make_case(kind, queries=64, keys=keys, head_dim=head_dim)
    _, report = run_ptx(library, ptx, case.tensors, case.spec, profile=True)
    for access in report.statistics.accesses.values():
        opcode = access.instruction.opcode
        mask_words = opcode in ("ld.global.u32", "ld.global.b32")
        sums = head_dim == 16 and opcode.startswith("ld.shared.v4")
        if not mask_words and not sums:
            assert access.transactions == access.ideal, access.instruction.text


def test_one_barrier_per_tile(library: HostLibrary, ptx: Module) -> None:
    """Flash: one before each tile. Short: one at all, between the warps' parts and their sum."""
    flash = make_case(np.float16, queries=64, keys=320)
    _, report = run_ptx(library, ptx, flash.tensors, flash.spec)
    assert report.statistics.barriers == 5
    short = make_case(np.float16, queries=16, keys=128)
    _, report = run_ptx(library, ptx, short.tensors, short.spec)
    assert report.statistics.barriers == 1
