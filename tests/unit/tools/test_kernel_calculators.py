"""Occupancy and time floors of kernels: known values and laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.kernels.evidence.occupancy import LIMITS, Limits, Usage, occupancy
from tools.kernels.evidence.problems import Problem, problems, tiles, work
from tools.kernels.evidence.roofline import GPUS, Gpu, Work, floor
from tools.kernels.evidence.sass import counted, family

ORIN, THOR = LIMITS["sm_87"], LIMITS["sm_110"]
NANO = GPUS[0]

# What NVIDIA's calculator (cuda_occupancy.h of CUDA 13.0, compiled by g++) answers.
KNOWN = [
    (ORIN, Usage(threads=128, registers=94, shared=33280), 4),
    (ORIN, Usage(threads=128, registers=47, shared=0), 10),
    (ORIN, Usage(threads=32, registers=40, shared=0), 16),
    (ORIN, Usage(threads=256, registers=128, shared=101376), 1),
    (ORIN, Usage(threads=256, registers=255, shared=0), 1),
    (ORIN, Usage(threads=257, registers=255, shared=0), 0),
    (ORIN, Usage(threads=96, registers=168, shared=1), 4),
    (ORIN, Usage(threads=128, registers=32, shared=166912), 1),
    (ORIN, Usage(threads=128, registers=32, shared=166913), 0),
    (THOR, Usage(threads=128, registers=94, shared=33280), 5),
    (THOR, Usage(threads=32, registers=40, shared=0), 24),
    (THOR, Usage(threads=128, registers=32, shared=232448), 1),
    (THOR, Usage(threads=160, registers=168, shared=65536), 2),
]


@pytest.mark.parametrize(("limits", "usage", "blocks"), KNOWN)
def test_blocks_per_sm_are_those_of_nvidias_calculator(
    limits: Limits, usage: Usage, blocks: int
) -> None:
    assert occupancy(usage, limits).blocks == blocks


def test_what_bounds_it_is_named() -> None:
    found = occupancy(Usage(threads=128, registers=128, shared=0), ORIN)
    assert (found.blocks, found.bound_by) == (4, "registers")
    assert found.share == pytest.approx(16 / 48)
    assert occupancy(Usage(32, 24, 0), ORIN).bound_by == "blocks"
    assert occupancy(Usage(32, 24, 60_000), ORIN).bound_by == "shared memory"
    assert occupancy(Usage(768, 24, 0), ORIN).bound_by == "threads"


def test_a_block_without_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="threads=0"):
        occupancy(Usage(0, 32, 0), ORIN)


@given(
    st.integers(1, 1024), st.integers(0, 255), st.integers(0, 200_000), st.sampled_from([0, 1, 2])
)
def test_needing_more_never_helps(threads: int, registers: int, shared: int, what: int) -> None:
    more = [(threads + 32, registers, shared), (threads, registers + 1, shared)]
    more.append((threads, registers, shared + 128))
    less = occupancy(Usage(threads, registers, shared), ORIN)
    assert occupancy(Usage(*more[what]), ORIN).blocks <= less.blocks
    assert 0 <= less.share <= 1


@pytest.mark.parametrize(
    ("gpu", "sparse_tops"),
    # INT8 of the GPU alone with 2:4 sparsity, which doubles it; Thor: FP8. From the data sheets.
    list(zip(GPUS, (67, 77, 170, 1035), strict=True)),
    ids=lambda value: value.module.name if isinstance(value, Gpu) else str(value),
)
def test_peaks_are_the_data_sheets(gpu: Gpu, sparse_tops: float) -> None:
    operations = 2 * 2 * gpu.peak_macs("int8")  # a MAC is two operations
    assert operations / 1e12 == pytest.approx(sparse_tops, rel=0.01)
    assert gpu.peak_macs("fp16") == gpu.peak_macs("int8") / 2


def test_a_floor_is_the_slowest_resource() -> None:
    reading = floor(Work(102_000, 0, 1000, 0, 10), NANO)  # at 102 GB/s: one microsecond
    assert (reading.total, reading.bound_by) == (pytest.approx(1.0), "memory")
    counting = floor(Work(1024, 1024, 8_355_840, 16_711_680, 10), NANO)  # a microsecond each
    assert (counting.total, counting.bound_by) == (pytest.approx(2.0), "tensor")
    softmax = floor(Work(1024, 1024, 1000, 0, 261_120), NANO)
    assert (softmax.total, softmax.bound_by) == (pytest.approx(2.0), "exponentials")


LISTING = """
\t.section\t.text.one,"ax",@progbits
.text.one:
        /*0000*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
.L_x_1:
        /*0010*/              @!P0 HMMA.16816.F32 R12, R16, R12, RZ ;
        /*0020*/              @UP1 HMMA.16816.F32 R12, R16, R12, RZ ;
        /*0030*/                   LDSM.16.MT88.4 R4, [R1] ;
.text.two:
        /*0000*/               @P0 BRA `(.L_x_1) ;
"""


def test_instructions_of_a_listing_are_counted_by_kernel() -> None:
    found = counted(LISTING)
    assert found["one"]["HMMA.16816.F32"] == 2
    assert family(found["one"], "LDGSTS", "LDSM") == 2
    assert found["two"] == {"BRA": 1}


def one(name: str) -> Problem:
    return next(each for each in problems() if each.name == name)


def test_what_a_problem_needs_at_least() -> None:
    squares = work(one("metal-squares"), "fp16")
    assert squares.read == 3 * 64 * 128 * 2 + 64 * 8  # tensors, and 64 mask bits per row
    assert squares.written == 64 * 128 * 2
    # Forbidden scores become 0 without a product, but their values take part.
    assert squares.fp16_macs == 4 * 32 * (64 * 63 + 64 * 64)
    leak = work(one("zeroleak"), "int8")
    assert leak.read == (64 + 2 * 72) * 256 + 64 * 12
    assert leak.int8_macs == leak.fp16_macs == 4 * 64 * 64 * (63 + 7)
    assert leak.exponentials == 4 * 64 * 70


def test_one_head_needs_its_share() -> None:
    fine = one("features-fine")
    whole, part = work(fine, "fp16"), work(fine.one_head(), "fp16")
    assert whole.fp16_macs == 4 * part.fp16_macs
    assert fine.one_head().spec.slopes == fine.spec.slopes[:1]


def test_tiles_that_nobody_looks_at_are_not_needed() -> None:
    assert tiles(one("features-fine")) == (256, 256)
    needed, every = tiles(one("window"))
    # 64 queries are two rows of the grid; they see 4 rows more on either side: 5 tiles of keys.
    assert every == 256
    assert needed == 5 * 16 - 2 * (1 + 2)
