"""Kernels that nvcc compiles, none of them attention: right results, and every mistake caught."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.mutation import mutate

from tools.kernels import build
from tools.ptx import Kind, Module, Report, launch

SOURCES = Path(__file__).parents[1] / "simt"
ARCHITECTURES = ["sm_87", "sm_110"]
SEEDS = [None, 1, 2, 3]


@dataclasses.dataclass
class Case:
    """One launch of a kernel and what must be in its arguments afterwards."""

    source: str
    kernel: str
    grid: tuple[int, int]
    threads: int
    arguments: list
    after: dict[int, np.ndarray]
    shared_bytes: int = 0

    def run(self, module: Module, seed: int | None, **options) -> Report:
        arguments = [a.copy() if isinstance(a, np.ndarray) else a for a in self.arguments]
        options = {"shared_bytes": self.shared_bytes, "seed": seed, **options}
        report = launch(module, self.kernel, self.grid, self.threads, arguments, **options)
        if not report.violations:
            for position, wanted in self.after.items():
                assert np.array_equal(arguments[position], wanted)
        return report


def random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    """Small whole numbers: sums are exact in any order."""
    return np.random.default_rng(7).integers(-9, 10, shape).astype(dtype)


def vector_add() -> Case:
    a, b = random(150), random(150)[::-1].copy()
    arguments = [a, b, np.full(150, np.nan, np.float32), 150]
    return Case("vector_add.cu", "vector_add", (3, 1), 64, arguments, {2: a + b})


def block_sum() -> Case:
    rows = random(3, 200)
    positive = (rows[:, :128] > 0).sum(axis=1).astype(np.int32)
    arguments = [rows, np.zeros(3, np.float32), np.zeros(3, np.int32), 200]
    after = {1: rows.sum(axis=1), 2: positive}
    return Case("block_sum.cu", "block_sum", (3, 1), 128, arguments, after, 32)


def transpose() -> Case:
    values = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    arguments = [values, np.zeros((48, 32), np.uint16), np.zeros_like(values), 32, 48]
    after = {1: values.T, 2: values}
    return Case("transpose.cu", "transpose", (3, 2), 32, arguments, after, 16 * 24 * 2)


def pipeline() -> Case:
    values = random(1500)
    padded = np.zeros(1536, np.float32)
    padded[:1500] = values
    arguments = [values, np.zeros(64, np.float32), 1500]
    after = {1: padded.reshape(-1, 64).sum(axis=0)}
    return Case("pipeline.cu", "pipeline", (1, 1), 64, arguments, after, 2048)


def multiply_halves() -> Case:
    a, b = random(32, 48, dtype=np.float16), random(16, 48, dtype=np.float16)
    product = a.astype(np.float32) @ b.astype(np.float32).T
    arguments = [a, b, np.zeros((32, 16), np.float32), 16, 48]
    return Case("multiply.cu", "multiply_halves", (2, 2), 32, arguments, {2: product})


def multiply_bytes() -> Case:
    a, b = (
        np.random.default_rng(s).integers(-128, 128, (n, 112), np.int8)
        for s, n in ((0, 32), (1, 16))
    )
    product = a.astype(np.int32) @ b.astype(np.int32).T
    arguments = [a, b, np.zeros((32, 16), np.int32), 16, 112]
    return Case("multiply.cu", "multiply_bytes", (2, 2), 32, arguments, {2: product})


def histogram() -> Case:
    values = np.random.default_rng(3).integers(0, 32, 500, np.int32)
    counts = np.bincount(values, minlength=32).astype(np.int32)
    zeros = np.zeros(32, np.int32)
    arguments = [values, zeros, np.zeros(1, np.int32), zeros.copy(), 500]
    after = {1: counts, 2: np.array([8], np.int32), 3: np.cumsum(counts, dtype=np.int32)}
    return Case("histogram.cu", "histogram", (8, 1), 64, arguments, after, 132)


CASES = [vector_add, block_sum, transpose, pipeline, multiply_halves, multiply_bytes, histogram]


def compiled(source: Path, arch: str) -> Module:
    try:
        return Module.load(build.ptx(source, arch, line_info=True))
    except build.MissingToolError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_right_kernels_pass_in_every_order(make, arch: str) -> None:
    case = make()
    module = compiled(SOURCES / case.source, arch)
    for seed in SEEDS:
        case.run(module, seed)


# The case, what is replaced by what, and the kinds of which one at least must be reported.
MISTAKES = [
    (vector_add, "i < count", "i <= count", {Kind.BOUNDS}),
    (block_sum, "  simt::sync_block();\n", "", {Kind.RACE, Kind.UNINITIALISED}),
    (block_sum, "simt::warp() != 0) return", "simt::lane() > 30) return", {Kind.DIVERGENCE}),
    (transpose, "  simt::sync_warp();\n", "", {Kind.RACE}),
    (transpose, "kPitch = 24", "kPitch = 20", {Kind.ALIGNMENT}),
    (transpose, "i < kTile * kTile;", "i < kTile * kTile - 32;", {Kind.UNINITIALISED}),
    (pipeline, "simt::copy_async_wait<1>();", "simt::copy_async_wait<2>();", {Kind.ASYNC}),
    (pipeline, "simt::copy_async_wait<0>();", "", {Kind.ASYNC}),
    (pipeline, "    simt::sync_block();  // others'", "    // others'", {Kind.RACE, Kind.ASYNC}),
    (pipeline, "    simt::sync_block();  // all", "    // all", {Kind.RACE, Kind.ASYNC}),
    (pipeline, "valid ? in + i : in, valid", "in + i, true", {Kind.BOUNDS}),
    (histogram, "    simt::memory_fence();  // this", "    // this", {Kind.RACE}),
    (histogram, "    simt::memory_fence();  // the", "    // the", {Kind.RACE}),
    (histogram, "simt::grid_x() - 1 ||", "simt::grid_x() - 2 ||", {Kind.RACE}),
    (histogram, "bins[simt::thread()] = 0;", "bins[simt::thread()] += 0;", {Kind.UNINITIALISED}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "old", "new", "kinds"), MISTAKES)
def test_mistakes_are_caught_in_every_order(
    make, old: str, new: str, kinds: set, tmp_path: Path
) -> None:
    case = make()
    wrong = tmp_path / case.source
    mutate(SOURCES / case.source, old, new, wrong)
    module = compiled(wrong, "sm_87")
    found = [case.run(module, seed, raises=False).kinds() & kinds for seed in SEEDS]
    if "fence" in old:  # shows only where blocks overtake each other between two atomics
        assert any(found)
    else:
        assert all(found)


def test_violations_name_the_line_of_the_source(tmp_path: Path) -> None:
    wrong = tmp_path / "vector_add.cu"
    mutate(SOURCES / "vector_add.cu", "i < count", "i <= count", wrong)
    report = vector_add().run(compiled(wrong, "sm_87"), None, raises=False)
    line = wrong.read_text().split("i <= count")[0].count("\n") + 1
    assert f"vector_add.cu:{line}" in str(report.violations[0])
    assert report.violations[0].block == (2, 0, 0)


def test_traffic_of_compiled_kernels() -> None:
    report = vector_add().run(compiled(SOURCES / "vector_add.cu", "sm_87"), None, profile=True)
    assert report.statistics.global_read == 2 * 150 * 4
    assert report.statistics.global_written == 150 * 4
    assert report.statistics.coalescing == 1.0
    case = multiply_halves()
    report = case.run(compiled(SOURCES / case.source, "sm_87"), None, profile=True)
    assert report.statistics.count("mma") == 2 * 2 * 3  # tiles, steps of 16 in the depth of 48
    assert report.statistics.unique_bytes == {"read": (32 + 16) * 48 * 2, "written": 32 * 16 * 4}
    assert report.statistics.global_read > report.statistics.unique_bytes["read"]
    case = transpose()
    report = case.run(compiled(SOURCES / case.source, "sm_87"), None, profile=True)
    assert report.statistics.bank_conflicts == 0  # what the pitch of 24 is for
