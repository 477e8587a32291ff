"""How much memory one bundle takes, measured in a process that loads nothing else.

`python -m metal_edge.cli.resident BUNDLE THREADS BATCH` prints a JSON object::

    resident_mib        of the whole process, after RUNS inferences
    bundle_mib          of that, what loading and running the bundle added
    gpu_mib             of a TensorRT bundle: what it added on the GPU, beside CUDA's own; whatever
                        other processes took or gave back meanwhile is in it
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from metal_edge.bundle import Bundle
from metal_edge.cli.console import print_json
from metal_edge.runtime.cuda_memory import Cuda, open_cuda
from metal_edge.runtime.load import load_runner

RUNS = 5  # the first ones allocate
_MIB = 1024 * 1024


def measure(path: Path, threads: int, batch: int) -> dict[str, float]:
    """Loads a bundle, runs it on noise, and says what that took."""
    bundle = Bundle.open(path)
    with ExitStack() as stack:
        gpu = _gpu(stack) if bundle.manifest.backend == "tensorrt" else None
        before = resident_bytes()
        gpu_before = gpu.memory_used() if gpu else 0
        runner = stack.enter_context(load_runner(bundle, threads))
        images = np.random.default_rng(0).integers(
            0, 256, (batch, *runner.input_shape), dtype=np.uint8
        )
        for _ in range(RUNS):
            runner.run(images)
        after = resident_bytes()
        found = {
            "resident_mib": round(after / _MIB, 1),
            "bundle_mib": round((after - before) / _MIB, 1),
        }
        if gpu:
            found["gpu_mib"] = round((gpu.memory_used() - gpu_before) / _MIB, 2)
    return found


def _gpu(stack: ExitStack) -> Cuda:
    """The GPU with its context made, which takes memory of its own, and current."""
    cuda = open_cuda()
    stack.callback(cuda.close)
    stack.enter_context(cuda.current())
    return cuda


def resident_bytes() -> int:
    """This process's resident set; its peak where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print_json(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
