"""The kernels under ThreadSanitizer and AddressSanitizer, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.kernels import build
from tools.kernels.attention import FOLDER, SOURCES, head_dims_define

ROOT = Path(__file__).parents[3]
HEAD_DIMS = (32, 48)
RUN = """
import sys
import numpy as np
from metal_edge.export.masked_attention import Fill
from support.attention_cases import assert_close, make_case
from tools.kernels.attention import HostLibrary, run_host
library = HostLibrary((32, 48), sys.argv[1])
cases = [make_case(np.float32, heads=2, queries=5, keys=40, fill=Fill.ZERO),
         make_case(np.float16, queries=8, keys=8, head_dim=256)]
for kind in (np.float16, np.int8):
    cases += [make_case(kind, batch=2, queries=18, keys=40),
              make_case(kind, queries=16, keys=100, head_dim=48, fill=Fill.ZERO),
              make_case(kind, queries=66, keys=200, head_dim=48)]
cases.append(make_case(np.float16, queries=18, keys=18, inputs=1, slopes=(0.5,), columns=5))
for seed, case in enumerate(cases):
    assert_close(run_host(library, case.tensors, case.spec, seed=seed), case)
print("finished")
"""


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_no_race_and_no_byte_beyond_a_tensor(sanitizer: build.Sanitizer) -> None:
    try:
        # here, because the compiler would be slow under the sanitizer; the process finds it built
        build.host_library(
            [FOLDER / name for name in SOURCES],
            defines=head_dims_define(HEAD_DIMS),
            sanitizer=sanitizer,
        )
    except build.MissingToolError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-c", RUN, sanitizer],
        env={
            **os.environ,
            **build.sanitizer_environment(sanitizer),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OPENBLAS_NUM_THREADS": "1",  # its threads' synchronisation is not instrumented
        },
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr[-4000:]
