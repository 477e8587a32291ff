"""Every head dim there is a kernel for; in emulation a quarter of them is compiled."""

from __future__ import annotations

import numpy as np
import pytest
from support.attention_cases import assert_close, make_case

from metal_edge.export.masked_attention import Fill
from tools.kernels.attention import ALL_HEAD_DIMS, HostLibrary, run_host
from tools.kernels.gpu import GpuLibrary, on_gpu

pytestmark = pytest.mark.skipif(not on_gpu(), reason="all head dims are compiled for a GPU only")


@pytest.fixture(scope="module")
def every() -> HostLibrary:
    return GpuLibrary()


@pytest.mark.parametrize("head_dim", ALL_HEAD_DIMS)
@pytest.mark.parametrize("kind", [np.float16, np.int8])
@pytest.mark.parametrize("keys", [1, 40, 128, 200, 513])
def test_tensor_cores(every: HostLibrary, head_dim: int, kind: type, keys: int) -> None:
    for fill in Fill:
        case = make_case(
            kind, batch=4, heads=3, queries=70, keys=keys, head_dim=head_dim, fill=fill,
            slack=(1, 16), seed=keys,
        )  # fmt: skip
        assert_close(run_host(every, case.tensors, case.spec, slack=case.slack), case)


@pytest.mark.parametrize("head_dim", range(16, 257, 16))
@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("keys", [8, 70])
def test_the_plain_path(every: HostLibrary, head_dim: int, kind: type, keys: int) -> None:
    case = make_case(kind, batch=8, heads=2, queries=33, keys=keys, head_dim=head_dim, seed=keys)
    assert_close(run_host(every, case.tensors, case.spec), case)


@pytest.mark.parametrize("kind", [np.float16, np.int8, np.float32])
def test_the_most_tokens_on_both_sides(every: HostLibrary, kind: type) -> None:
    near = np.abs(np.arange(4096)[:, None] - np.arange(4096)) < 100
    case = make_case(kind, queries=4096, keys=4096, head_dim=16, allowed=near)
    assert_close(run_host(every, case.tensors, case.spec), case)
