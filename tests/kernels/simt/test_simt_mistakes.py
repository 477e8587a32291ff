"""Each class of mistake is caught: by an error, a wrong result under some seed, or a sanitizer.

Each case is one of the test kernels with one edit. It runs in a process of its own: a kernel that
writes out of bounds may do anything. That the unedited kernels pass the same runs is in
test_simt_programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from simt_programs import (
    Program,
    block_sum,
    histogram,
    multiply_halves,
    pipeline,
    transpose,
    vector_add,
)
from support.host_kernels import call_apart
from support.mutation import mutate

from tools.kernels import build

SEEDS = range(1, 7)


@dataclass(frozen=True)
class Mistake:
    """An edit of a kernel's source, and how it shows."""

    name: str
    make: Callable[[], Program]
    old: str
    new: str
    # error: the launch returns one that contains `says`. wrong: some seed gives another result.
    # thread, address: that sanitizer's report contains `says`.
    shows: Literal["error", "wrong", "thread", "address"]
    says: str = ""


BARRIER = "  simt::sync_block();\n"
READ = "    simt::sync_block();  // all have read before the stage is overwritten\n"
LANDED = "    simt::sync_block();  // others' copies have landed too\n"

MISTAKES = [
    # Barriers.
    Mistake("barrier before partial sums", block_sum, BARRIER, "", "wrong"),
    Mistake("barrier before partial sums, race", block_sum, BARRIER, "", "thread", "data race"),
    Mistake("barrier before overwriting", pipeline, READ, "", "wrong"),
    Mistake("barrier before overwriting, race", pipeline, READ, "", "thread", "data race"),
    Mistake("barrier after copies", pipeline, LANDED, "", "wrong"),
    Mistake("barrier after copies, race", pipeline, LANDED, "", "thread", "data race"),
    Mistake("warp barrier before a matrix load, race", transpose,
            "  simt::sync_warp();\n", "", "thread", "data race"),
    Mistake("a shuffle orders no memory", transpose, "  simt::sync_warp();\n",
            "  simt::ballot(true);\n", "thread", "data race"),
    # Asynchronous copies.
    Mistake("wait removed", pipeline, "      simt::copy_async_wait<1>();\n", "", "wrong"),
    Mistake("last wait removed", pipeline, "      simt::copy_async_wait<0>();\n", "", "wrong"),
    Mistake("wait for too few", pipeline, "copy_async_wait<0>", "copy_async_wait<1>", "wrong"),
    Mistake("wait for too few, race", pipeline, "copy_async_wait<0>", "copy_async_wait<1>",
            "thread", "async copies"),
    Mistake("commit removed", pipeline, "  simt::copy_async_commit();\n", "", "wrong"),
    Mistake("no zeros for what is not there", pipeline, "valid ? in + i : in, valid",
            "in + i, true", "address", "heap-buffer-overflow"),
    Mistake("copy to a misaligned place", pipeline, "stage + 4 * simt::thread(), valid",
            "stage + 4 * simt::thread() + 1, valid", "error",
            "not a multiple of 16"),
    Mistake("copy from a misaligned place", pipeline, "in + i : in", "in + i + 1 : in", "error",
            "not a multiple of 16"),
    Mistake("copy beyond shared memory", pipeline, "2 * kTileFloats * 4", "kTileFloats * 4",
            "error", "outside the 1024 bytes there are"),
    # Bounds and alignment.
    Mistake("element beyond the array", vector_add, "i < count", "i <= count", "address",
            "heap-buffer-overflow"),
    Mistake("write beyond shared memory", block_sum, "kWarps * 8;", "kWarps * 8 - 4;", "error",
            "wrote beyond the 28 bytes of shared memory, at offset 28"),
    Mistake("read beyond shared memory", block_sum, "simt::lane() < kWarps ? partial",
            "simt::lane() <= 2 * kWarps ? partial", "address", "heap-buffer-overflow"),
    Mistake("matrix row beyond shared memory", transpose, "kTile * kPitch * 2",
            "kTile * kPitch * 2 - 48", "error", "outside the 720 bytes"),
    Mistake("misaligned matrix row", transpose, "kPitch = 24", "kPitch = 20", "error",
            "not a multiple of 16"),
    Mistake("misaligned word", multiply_halves, "+ 4 * quarter,", "+ 4 * quarter + 2,",
            "address", "misaligned"),
    Mistake("uninitialised shared memory", histogram,
            "  if (simt::thread() < kBins) bins[simt::thread()] = 0;\n", "", "wrong"),
    # Divergence.
    Mistake("divergent shuffle", block_sum, "  value = sum_of_warp(value);\n",
            "  if (simt::lane() < 31) value = sum_of_warp(value);\n", "error",
            "wait at shuffle"),
    Mistake("different collectives", block_sum, "  value = sum_of_warp(value);\n",
            "  if (simt::lane() < 31) value = sum_of_warp(value); else simt::ballot(true);\n",
            "error", "divergent warp: this lane is at"),
    Mistake("divergent barrier", histogram, "  simt::sync_block();\n  const int i",
            "  if (simt::lane() != 3) simt::sync_warp();\n  simt::sync_block();\n  const int i",
            "error", "deadlock: "),
    Mistake("matrix load without a lane", transpose, "  simt::sync_warp();\n",
            "  simt::sync_warp();\n  if (lane == 9) return;\n", "error", "one has exited"),
    # Between blocks.
    Mistake("a last block that is not last", histogram, "grid_x() - 1 ", "grid_x() - 2 ", "wrong"),
    Mistake("no fence before arrival", histogram,
            "    simt::memory_fence();  // this block's counts before its arrival\n", "",
            "thread", "data race"),
    Mistake("no fence after arrival", histogram,
            "    simt::memory_fence();  // the others' arrivals before their counts\n", "",
            "thread", "data race"),
    Mistake("a plain sum between blocks", histogram,
            "simt::atomic_add(&counts[simt::thread()], bins[simt::thread()]);",
            "counts[simt::thread()] += bins[simt::thread()];", "thread", "data race"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistake_is_caught(mistake: Mistake, tmp_path: Path) -> None:
    program = mistake.make()
    source = tmp_path / program.source.name
    mutate(program.source, mistake.old, mistake.new, source)
    sanitizer = mistake.shows if mistake.shows in ("thread", "address") else None
    try:
        library = build.host_library([source], sanitizer=sanitizer)
    except build.MissingToolError as error:
        pytest.skip(str(error))
    environment = build.sanitizer_environment(sanitizer) if sanitizer else {}

    for seed in SEEDS:
        outcome = call_apart(
            library, program.function, program.fresh(),
            folder=tmp_path, seed=seed, environment=environment,
        )  # fmt: skip
        if mistake.shows == "wrong":
            assert not outcome.failed, outcome.text
            if not program.right(outcome.arguments):
                return
        else:
            assert outcome.failed, f"nothing found under seed {seed}"
            assert mistake.says in outcome.text
            return
    pytest.fail(f"the result is right under seeds {list(SEEDS)}")
