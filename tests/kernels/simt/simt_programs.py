"""The test kernels with inputs and what must come out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.host_kernels import Argument

HERE = Path(__file__).parent
_RANDOM = np.random.default_rng(5)


@dataclass(frozen=True)
class Program:
    """One launch: a source here, its launcher, arguments, and the arrays among them afterwards."""

    source: Path
    function: str
    arguments: list[Argument]
    after: dict[int, np.ndarray]  # by position

    def fresh(self) -> list[Argument]:
        return [value if isinstance(value, int) else value.copy() for value in self.arguments]

    def right(self, arguments: list[Argument]) -> bool:
        """Bit for bit; the sums here are exact in any order."""
        return all(np.array_equal(arguments[i], value) for i, value in self.after.items())


def _whole(*shape: int) -> np.ndarray:
    return _RANDOM.integers(-9, 10, shape).astype(np.float32)


def vector_add(count: int = 150) -> Program:
    a, b = _whole(count), _whole(count)
    empty = np.full(count, np.nan, np.float32)
    return Program(
        HERE / "vector_add.cu", "launch_vector_add", [a, b, empty, count], {2: a + b}
    )  # fmt: skip


def block_sum(rows: int = 3, columns: int = 200) -> Program:
    values = _whole(rows, columns)
    positives = (values[:, :128] > 0).sum(axis=1).astype(np.int32)
    return Program(
        HERE / "block_sum.cu", "launch_block_sum",
        [values, np.full(rows, np.nan, np.float32), np.full(rows, -1, np.int32), rows, columns],
        {1: values.sum(axis=1), 2: positives},
    )  # fmt: skip


def transpose(rows: int = 32, columns: int = 48) -> Program:
    values = _RANDOM.permutation(rows * columns).astype(np.uint16).reshape(rows, columns)
    return Program(
        HERE / "transpose.cu", "launch_transpose",
        [values, np.zeros((columns, rows), np.uint16), np.zeros_like(values), rows, columns],
        {1: values.T, 2: values},
    )  # fmt: skip


def pipeline(count: int = 1500) -> Program:
    values = _whole(count)
    padded = np.zeros(-(-count // 256) * 256, np.float32)
    padded[:count] = values
    return Program(
        HERE / "pipeline.cu", "launch_pipeline",
        [values, np.full(64, np.nan, np.float32), count],
        {1: padded.reshape(-1, 64).sum(axis=0)},
    )  # fmt: skip


def multiply_halves(rows: int = 32, columns: int = 16, depth: int = 48) -> Program:
    a, b = _whole(rows, depth).astype(np.float16), _whole(columns, depth).astype(np.float16)
    product = a.astype(np.float32) @ b.astype(np.float32).T
    return Program(
        HERE / "multiply.cu", "launch_multiply_halves",
        [a, b, np.full((rows, columns), np.nan, np.float32), rows, columns, depth],
        {2: product},
    )  # fmt: skip


def multiply_bytes(rows: int = 32, columns: int = 16, depth: int = 112) -> Program:
    """A depth of 3 x 32 + 16 takes both instructions."""
    a = _RANDOM.integers(-128, 128, (rows, depth), np.int8)
    b = _RANDOM.integers(-128, 128, (columns, depth), np.int8)
    product = a.astype(np.int32) @ b.astype(np.int32).T
    return Program(
        HERE / "multiply.cu", "launch_multiply_bytes",
        [a, b, np.zeros((rows, columns), np.int32), rows, columns, depth],
        {2: product},
    )  # fmt: skip


def histogram(count: int = 500) -> Program:
    values = _RANDOM.integers(0, 32, count, np.int32)
    counts = np.bincount(values, minlength=32).astype(np.int32)
    return Program(
        HERE / "histogram.cu", "launch_histogram",
        [values, np.zeros(32, np.int32), np.zeros(1, np.int32), np.zeros(32, np.int32), count],
        {1: counts, 3: np.cumsum(counts, dtype=np.int32)},
    )  # fmt: skip


PROGRAMS = [
    vector_add, block_sum, transpose, pipeline, multiply_halves, multiply_bytes, histogram,
]  # fmt: skip
