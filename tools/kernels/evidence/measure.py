"""What a kernel does to memory, counted by the PTX interpreter on whole problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metal_edge.export.masked_attention import MaskedAttentionSpec, plain, reference
from tools.kernels.attention import Array, HostLibrary, prepare, run_ptx
from tools.kernels.evidence.problems import Problem
from tools.ptx import Module, Statistics
from tools.ptx.statistics import SECTOR

# Beyond this, one head stands for all: they read the same mask tiles, and as many bytes.
_MOST_SCORES = 600_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """One launch; bytes and counts of all heads.

    Attributes:
        kernel: that the planner chose.
        blocks, threads, shared: of the launch; `shared` in bytes per block.
        interpreted: heads that were run; the counts are multiplied up to all.
        read, written: bytes of the 32-byte sectors that warps asked of global memory; what several
            blocks ask for counts as often.
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
    check(problem.name, out, _exact(tensors, spec), plain(tensors, spec))
    counted, times = report.statistics, heads // spec.heads
    whole = prepare(library, problem.tensors(precision), problem.typed(precision))
    launch = library.plan(whole.problem)
    return Traffic(
        kernel=report.kernel,
        blocks=int(np.prod(list(launch.grid))),
        threads=launch.threads,
        shared=launch.shared_bytes,
        interpreted=spec.heads,
        read=sector_bytes(counted, store=False) * times,
        written=sector_bytes(counted, store=True) * times,
        coalescing=counted.coalescing,
        passes=fewest_passes(counted) * times,
        conflicts=counted.bank_conflicts * times,
        products=counted.count("mma.sync") * times,
    )


def sector_bytes(counted: Statistics, *, store: bool) -> int:
    """Of the sectors that loads, or stores, touched."""
    found = [a for a in counted.accesses.values() if a.space == "global" and a.store == store]
    return SECTOR * sum(access.transactions for access in found)


def fewest_passes(counted: Statistics) -> int:
    """Over the banks of shared memory, if no two words met in one."""
    return sum(a.ideal for a in counted.accesses.values() if a.space == "shared")


def check(name: str, out: Array, exact: Array, usual: Array) -> None:
    """Compares a result with float64, by how far a plain implementation is from it.

    Raises:
        ArithmeticError: more than twice as far, or not a number.
    """
    allowed = 2 * np.abs(usual.astype(np.float64) - exact).max()
    error = np.abs(out.astype(np.float64) - exact).max()
    if not error <= allowed:  # NaN is no small error
        raise ArithmeticError(f"{name}: off by {error:.3g}, allowed are {allowed:.3g}")


def _exact(tensors: list[Array], spec: MaskedAttentionSpec) -> Array:
    """In units of the output's elements."""
    exact = reference(tensors, spec)
    return exact if spec.int8 is None else np.clip(exact / spec.int8.out, -128, 127)
