"""The kernels under ThreadSanitizer and AddressSanitizer, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.kernels import build

ROOT = Path(__file__).parents[3]
HEAD_DIMS = (32, 48)
RUN = """
import sys
import numpy as np
from metal_edge.export.masked_attention import Fill
from support.attention_cases import assert_close, make_case
from tools.kernels.attention import HostLibrary, run_host
library = HostLibrary((32, 48), sys.argv[1])
number = 0
for kind in (np.float16, np.int8, np.float32):
    for keys, head_dim, fill in ((40, 32, "exclude"), (100, 48, "zero"), (200, 48, "exclude")):
        case = make_case(kind, batch=2, heads=2, queries=70, keys=keys, head_dim=head_dim,
                         fill=Fill(fill), seed=number)
        assert_close(run_host(library, case.tensors, case.spec, seed=number), case)
        number += 1
case = make_case(np.float16, queries=130, keys=130, inputs=1, slopes=(0.5,), columns=12)
assert_close(run_host(library, case.tensors, case.spec, seed=1), case)
case = make_case(np.float16, queries=8, keys=8, head_dim=256)
assert_close(run_host(library, case.tensors, case.spec, seed=1), case)
print("finished")
"""


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_no_race_and_no_byte_beyond_a_tensor(sanitizer: build.Sanitizer) -> None:
    try:
        environment = build.sanitizer_environment(sanitizer)
    except build.MissingToolError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-c", RUN, sanitizer],
        env={
            **os.environ,
            **environment,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OPENBLAS_NUM_THREADS": "1",  # its threads' synchronisation is not instrumented
        },
        capture_output=True, text=True, timeout=230, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr[-4000:]
