"""Runs the fused block under a sanitizer, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.kernels import build

ROOT = Path(__file__).parents[2]
RUN = """
import ctypes, sys
from support.fused_blocks import check_exact, random_case
from tools.kernels.block import Block
block = Block(ctypes.CDLL(sys.argv[1]))
cases = [random_case(seed, batch=1 + seed % 2, heads=2, head_dim=(16, 64, 32)[seed], queries=18,
                     keys=(19, 72, 128)[seed]) for seed in range(3)]
cases.append(random_case(3, heads=1, queries=17, keys=17, slopes=(1.0,), columns=5))
for seed, case in enumerate(cases):
    check_exact(case, block.run_host(case, seed))
print("finished")
"""


def run_sanitized(
    sources: Sequence[Path], sanitizer: build.Sanitizer
) -> subprocess.CompletedProcess[str]:
    """Builds the fused block from these sources and runs a few cases."""
    try:
        library = build.host_library(sources, sanitizer=sanitizer)
    except build.MissingToolError as error:
        pytest.skip(str(error))
    environment = {
        **os.environ,
        **build.sanitizer_environment(sanitizer),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "OPENBLAS_NUM_THREADS": "1",  # its threads' synchronisation is not instrumented
    }
    return subprocess.run(
        [sys.executable, "-c", RUN, str(library)],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
