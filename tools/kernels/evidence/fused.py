"""The fused ZeroLeak block: the same evidence as for the attention kernels."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from numpy.typing import NDArray

from metal_edge.export.masked_attention import MaskedAttentionSpec
from metal_edge.export.masked_attention_block import MaskedAttentionBlockSpec, plain, reference
from tools.kernels import build
from tools.kernels.block import KERNEL, KERNEL_SOURCE, SOURCES, Block, Case
from tools.kernels.evidence.compiled import Launch
from tools.kernels.evidence.measure import Traffic, check, fewest_passes, sector_bytes
from tools.kernels.evidence.problems import Problem
from tools.kernels.evidence.roofline import Work
from tools.ptx import Device, Module
from tools.ptx import launch as interpret


@functools.cache
def library() -> Block:
    """Planner and argument block, compiled by g++."""
    return Block(ctypes.CDLL(str(build.host_library(SOURCES))))


def case(problem: Problem, batch: int = 1) -> Case:
    """The block around an attention: normal tensors, projections that keep their size.

    Query and residual are one for all images, as in the first layer.
    """
    rng, width = np.random.default_rng(5), problem.spec.heads * problem.head_dim

    def normal(*shape: int, size: float = 1.0) -> NDArray[np.float16]:
        return (rng.normal(size=shape) * size).astype(np.float16)

    tensors = {
        "query": normal(1, problem.queries, width),
        "content": normal(batch, problem.keys, width),
        "residual": normal(1, problem.queries, width),
        "gamma": normal(width),
        "beta": normal(width),
        "w_kv": normal(2 * width, width, size=width**-0.5),
        "b_kv": normal(2 * width),
        "w_out": normal(width, width, size=width**-0.5),
        "b_out": normal(width),
    }
    return Case(tensors, MaskedAttentionBlockSpec(problem.spec))


def launches() -> dict[str, Launch]:
    """The largest block that the planner takes: M = 128, W = 256, heads of 64."""
    spec = MaskedAttentionSpec.of_mask(np.ones((64, 128), bool), 4)
    plan = library().plan(case(Problem("", "", spec, 64)).problem)
    return {KERNEL: Launch(plan.threads, plan.shared_bytes)}


def work(problem: Problem) -> Work:
    """By the operator's definition: every projection once, then the attention."""
    given, spec = case(problem).tensors, problem.spec
    width, allowed = spec.heads * problem.head_dim, int(spec.allowed.sum())
    attention = 2 * allowed * (spec.heads // spec.mask_shape[0]) * problem.head_dim
    projections = problem.keys * 2 * width * width + problem.queries * width * width
    return Work(
        read=sum(tensor.nbytes for tensor in given.values()) + len(spec.mask) // 2,
        written=problem.queries * width * 2,
        fp16_macs=projections + attention,
        int8_macs=0,
        exponentials=allowed * spec.heads,
    )


def measure(problem: Problem) -> Traffic:
    """Interprets the block; workspace and its counters are in the bytes.

    Raises:
        ArithmeticError: the result is farther from float64 than twice separate kernels'.
        ViolationError: the kernel broke a rule of the programming model.
    """
    block, given, device = library(), case(problem), Device()
    arrays, plan = block.memory(given), block.plan(given.problem)
    addresses = {name: device.upload(array, name) for name, array in arrays.items()}
    report = interpret(
        Module.parse(build.ptx(KERNEL_SOURCE).read_text()),
        plan.kernel.decode(),
        list(plan.grid),
        plan.threads,
        [block.arguments(given.problem, addresses)],
        shared_bytes=plan.shared_bytes,
        device=device,
        profile=True,
    )
    out = device.download(addresses["out"], arrays["out"])
    check(
        f"{problem.name} block",
        out,
        reference(given.tensors, given.spec),
        plain(given.tensors, given.spec),
    )
    counted = report.statistics
    return Traffic(
        kernel=report.kernel,
        blocks=int(np.prod(list(plan.grid))),
        threads=plan.threads,
        shared=plan.shared_bytes,
        interpreted=problem.spec.heads,
        read=sector_bytes(counted, store=False),
        written=sector_bytes(counted, store=True),
        coalescing=counted.coalescing,
        passes=fewest_passes(counted),
        conflicts=counted.bank_conflicts,
        products=counted.count("mma.sync"),
    )
