"""The fused block under ThreadSanitizer and AddressSanitizer, in a process of their own."""

from __future__ import annotations

import pytest
from support.sanitized_blocks import run_sanitized

from tools.kernels import build
from tools.kernels.block import SOURCES


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_no_race_and_no_byte_beyond_a_buffer(sanitizer: build.Sanitizer) -> None:
    done = run_sanitized(SOURCES, sanitizer)
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr[-4000:]
