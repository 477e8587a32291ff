from __future__ import annotations

import pytest
from support.attention_cases import HEAD_DIMS

from tools.kernels import build
from tools.kernels.attention import HostLibrary, ptx_module
from tools.kernels.gpu import GpuLibrary, on_gpu
from tools.ptx import Module


@pytest.fixture(scope="session")
def library() -> HostLibrary:
    """The kernels for the emulation, or for this machine's GPU if that is asked for."""
    try:
        return GpuLibrary(HEAD_DIMS) if on_gpu() else HostLibrary(HEAD_DIMS)
    except build.MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["sm_87", "sm_110"])
def ptx(request: pytest.FixtureRequest) -> Module:
    """The kernels for the interpreter."""
    try:
        return ptx_module(HEAD_DIMS, request.param)
    except build.MissingToolError as error:
        pytest.skip(str(error))
