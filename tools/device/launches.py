"""Every problem of docs/kernels.md once, on this machine's GPU, checked against float64.

What compute-sanitizer and Nsight Compute are pointed at: nothing is launched but our kernels.

    python -m tools.device.launches
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from metal_edge.export.masked_attention import MaskedAttentionSpec, plain, reference
from metal_edge.export.masked_attention_block import plain as plain_block
from metal_edge.export.masked_attention_block import reference as block_reference
from tools.kernels.attention import Array, UnsupportedError, run_host
from tools.kernels.evidence import fused
from tools.kernels.evidence.measure import check
from tools.kernels.evidence.problems import Problem, problems
from tools.kernels.gpu import GpuBlock, GpuLibrary

PRECISIONS = ("fp16", "int8", "fp32")
HEAD_DIMS = (32, 64)  # of the problems on tensor cores
BLOCK = "zeroleak"  # the problem that has one


def tensors(problem: Problem, precision: str) -> tuple[list[Array], MaskedAttentionSpec]:
    """Inputs and attributes; fp32's numbers are fp16's."""
    given = problem.tensors("int8" if precision == "int8" else "fp16")
    if precision == "fp32":
        given = [each.astype(np.float32) for each in given]
    return given, problem.typed(precision)


def launch_all() -> Iterator[str]:
    """Runs them, and tells each as `problem precision kernel`, in the order of the launches.

    Raises:
        ArithmeticError: a result is off by more than twice a plain implementation's error.
        LaunchError: a kernel failed, or there is no GPU.
    """
    library = GpuLibrary(HEAD_DIMS)
    for problem in problems():
        for precision in PRECISIONS:
            given, spec = tensors(problem, precision)
            try:
                out = run_host(library, given, spec)
            except UnsupportedError:
                continue
            exact = reference(given, spec)
            if spec.int8 is not None:
                exact = np.clip(exact / spec.int8.out, -128, 127)
            check(f"{problem.name} {precision}", out, exact, plain(given, spec))
            yield f"{problem.name} {precision}"
        if problem.name == BLOCK:
            case = fused.case(problem)
            result = GpuBlock().run_host(case)
            exact = block_reference(case.tensors, case.spec)
            check("block fp16", result, exact, plain_block(case.tensors, case.spec))
            yield f"{problem.name}, its whole block fp16"


def main() -> int:
    """Prints a line per launch; status 1 if a result is wrong or a launch failed."""
    try:
        for line in launch_all():
            print(line, flush=True)
    except (ArithmeticError, RuntimeError) as error:  # LaunchError, and no nvcc, are the latter
        print(f"tools.device.launches: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
