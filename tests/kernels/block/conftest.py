from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tools.kernels import build
from tools.kernels.block import KERNEL_SOURCE, SOURCES, Block
from tools.kernels.gpu import GpuBlock, on_gpu


@pytest.fixture(scope="session")
def library() -> Path:
    """The launcher and the kernel for the emulation."""
    try:
        return build.host_library(SOURCES)
    except build.MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def block(request: pytest.FixtureRequest) -> Block:
    """The block in the emulation, or on this machine's GPU if that is asked for."""
    if on_gpu():
        return GpuBlock()
    return Block(ctypes.CDLL(str(request.getfixturevalue("library"))))


@pytest.fixture(scope="session")
def ptx() -> Path:
    try:
        return build.ptx(KERNEL_SOURCE)
    except build.MissingToolError as error:
        pytest.skip(str(error))
