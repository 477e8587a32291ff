"""Both ways to CUDA, through stand-ins of their packages: same results, errors in CUDA's words."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from support.fake_cuda import FakeCuda, FakeEngine, brightness
from support.fake_cuda_packages import install_cuda_python, install_pycuda

from metal_edge.errors import UnavailableError
from metal_edge.runtime.cuda_memory import CudaPython, PyCuda, missing_cuda_package, open_cuda
from metal_edge.runtime.tensorrt_runner import TensorRtRunner

Install = Callable[[FakeCuda, pytest.MonkeyPatch], None]
WAYS = [
    pytest.param(install_cuda_python, CudaPython, id="cuda-python"),
    pytest.param(install_pycuda, PyCuda, id="pycuda"),
]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
FAILURES = [
    ("allocate_host", 1),
    ("allocate_device", 2),
    ("create_stream", 1),
    ("upload", 1),
    ("upload", 3),
    ("download", 4),
    ("synchronize", 1),
    ("synchronize", 2),
    ("begin_capture", 1),
    ("end_capture", 1),
    ("instantiate", 1),
    ("launch", 1),
]


@pytest.mark.parametrize(("install", "kind"), WAYS)
def test_a_whole_session(
    install: Install, kind: type[PyCuda | CudaPython], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCuda()
    install(fake, monkeypatch)
    cuda = kind()
    assert (cuda.gpu, cuda.compute_capability) == ("Fake Orin", "8.7")
    with TensorRtRunner(FakeEngine(fake), cuda) as runner:
        for count in (1, 5, 2, 1):
            maps, scores = brightness(IMAGES[:count])
            got = runner.run(IMAGES[:count])
            assert [i.score for i in got] == scores.tolist()
            np.testing.assert_array_equal([i.anomaly_map for i in got], maps)
    assert not fake.live
    assert fake.calls["begin_capture"] == 3  # batches of 1, 3 and 2


@pytest.mark.parametrize(("install", "kind"), WAYS)
def test_how_much_of_the_device_is_taken(
    install: Install, kind: type[PyCuda | CudaPython], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeCuda(("memory_used", 3))
    install(fake, monkeypatch)
    cuda = kind()
    with cuda.current():
        assert cuda.memory_used() == 0
        address = cuda.allocate_device(1000)
        assert cuda.memory_used() == 1000
        with pytest.raises(UnavailableError, match="CUDA failed"):
            cuda.memory_used()
        cuda.free_device(address)
    cuda.close()


@pytest.mark.parametrize("fail", FAILURES, ids=lambda f: f"{f[0]}-{f[1]}")
@pytest.mark.parametrize(("install", "kind"), WAYS)
def test_a_failure_in_cudas_words_leaves_nothing(
    install: Install,
    kind: type[PyCuda | CudaPython],
    fail: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda(fail)
    install(fake, monkeypatch)
    engine = FakeEngine(fake)
    words = r"CUDA failed .*an illegal memory access was encountered.*restart"
    with pytest.raises(UnavailableError, match=words), TensorRtRunner(engine, kind()) as runner:
        runner.run(IMAGES[:1])
    assert not fake.live
    assert (engine.closed, engine.executions) == (1, 0)


def test_pycuda_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    install_cuda_python(FakeCuda(), monkeypatch)
    install_pycuda(FakeCuda(), monkeypatch)
    assert isinstance(open_cuda(), PyCuda)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    assert isinstance(open_cuda(), CudaPython)
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UnavailableError, match=r"PyCUDA cannot be used.*cuda-python cannot be"):
        open_cuda()


def test_what_is_missing_is_said_without_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [])
    assert missing_cuda_package() == "neither PyCUDA nor cuda-python is installed"
