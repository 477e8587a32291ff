from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tools.kernels import build
from tools.kernels.block import KERNEL_SOURCE, SOURCES, Block


@pytest.fixture(scope="session")
def library() -> Path:
    """The launcher and the kernel for the emulation."""
    try:
        return build.host_library(SOURCES)
    except build.MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def block(library: Path) -> Block:
    return Block(ctypes.CDLL(str(library)))


@pytest.fixture(scope="session")
def ptx() -> Path:
    try:
        return build.ptx(KERNEL_SOURCE)
    except build.MissingToolError as error:
        pytest.skip(str(error))
