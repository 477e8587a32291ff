"""What a kernel does to memory, counted by the PTX interpreter on whole problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metal_edge.export.masked_attention import MaskedAttentionSpec, plain, reference
from tools.kernels.attention import Array, HostLibrary, prepare, run_ptx
from tools.kernels.evidence.problems import Problem
from tools.ptx import Module, Statistics

# Beyond this, one head stands for all: they read the same mask tiles, and as many bytes.
_MOST_SCORES = 600_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """One launch; bytes and counts of all heads.

    Attributes:
        kernel: that the planner chose.
        blocks, threads, shared: of the launch; `shared` in bytes per block.
        interpreted: heads that were run; the counts are multiplied up to all.
        read, written: bytes that lanes moved from and to global memory, repetitions included.
        coalescing: fewest 32-byte sectors that could hold what warps asked for, over those touched.
        passes, conflicts: over the banks of shared memory: the fewest possible, and those beyond.
        products: tensor-core instructions, per warp.
    """

    kernel: str
    blocks: int
    threads: int
    shared: int
    interpreted: int
    read: int
    written: int
    coalescing: float
    passes: int
    conflicts: int
    products: int


def measure(problem: Problem, precision: str, library: HostLibrary, module: Module) -> Traffic:
    """Interprets a problem, or one head of a large one, and checks the result too.

    Args:
        problem: what to run.
        precision: `fp16` or `int8`.
        library: plans the launch; compiled for the problem's head dim.
        module: the same kernels' PTX.

    Raises:
        ArithmeticError: the result is farther from float64 than twice a plain implementation's.
        UnsupportedError: no kernel takes it.
        ViolationError: the kernel broke a rule of the programming model.
    """
    heads = problem.spec.heads
    large = heads * problem.queries * problem.keys > _MOST_SCORES
    given = problem.one_head() if large else problem
    spec, tensors = given.typed(precision), given.tensors(precision)
    out, report = run_ptx(library, module, tensors, spec, profile=True)
    _check(problem.name, out, tensors, spec)
    counted, times = report.statistics, heads // spec.heads
    whole = prepare(library, problem.tensors(precision), problem.typed(precision))
    launch = library.plan(whole.problem)
    return Traffic(
        kernel=report.kernel,
        blocks=int(np.prod(list(launch.grid))),
        threads=launch.threads,
        shared=launch.shared_bytes,
        interpreted=spec.heads,
        read=counted.global_read * times,
        written=counted.global_written * times,
        coalescing=counted.coalescing,
        passes=_fewest_passes(counted) * times,
        conflicts=counted.bank_conflicts * times,
        products=counted.count("mma.sync") * times,
    )


def _fewest_passes(counted: Statistics) -> int:
    return sum(a.ideal for a in counted.accesses.values() if a.space == "shared")


def _check(name: str, out: Array, tensors: list[Array], spec: MaskedAttentionSpec) -> None:
    exact = reference(tensors, spec)
    if spec.int8 is not None:
        exact = np.clip(exact / spec.int8.out, -128, 127)
    allowed = 2 * np.abs(plain(tensors, spec).astype(np.float64) - exact).max()
    error = np.abs(out.astype(np.float64) - exact).max()
    if not error <= allowed:  # NaN is no small error
        raise ArithmeticError(f"{name}: off by {error:.3g}, allowed are {allowed:.3g}")
