"""The runner over a real GPU: pinned memory, streams and captured graphs are CUDA's own.

An engine of plain copies stands for TensorRT, which need not be installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metal_edge.errors import UnavailableError
from metal_edge.runtime.cuda_memory import CudaPython, PyCuda, missing_cuda_package
from metal_edge.runtime.tensorrt_load import missing_gpu
from metal_edge.runtime.tensorrt_runner import IMAGE, MAP, SCORE, TensorRtRunner, TensorSpec

pytestmark = pytest.mark.skipif(missing_gpu() is not None, reason="no NVIDIA GPU here")
H, W = 4, 4  # 48 bytes, which the map takes as they are: float32 [2, 6]


class Copies:
    """An execution that copies the pixels into the map, and the first four into the score."""

    def __init__(self, batch: int, addresses: Mapping[str, int], silent: bool, fails: bool) -> None:
        from cuda.bindings import runtime

        self._runtime, self._batch, self._at = runtime, batch, addresses
        self._silent, self._fails = silent, fails

    def enqueue(self, stream: int) -> None:
        if self._fails and self._capturing(stream):
            raise UnavailableError("TensorRT failed to execute (a test)")
        self._copy(self._at[MAP], self._at[IMAGE], 48 * self._batch, stream)
        if not self._silent:
            for image in range(self._batch):
                source = self._at[IMAGE] + 48 * image
                self._copy(self._at[SCORE] + 4 * image, source, 4, stream)

    def _capturing(self, stream: int) -> bool:
        _, status = self._runtime.cudaStreamIsCapturing(stream)
        return bool(status == self._runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive)

    def _copy(self, to: int, source: int, size: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        (status,) = self._runtime.cudaMemcpyAsync(to, source, size, kind, stream)
        assert int(status) == 0

    def close(self) -> None:
        pass


class CopyEngine:
    def __init__(self, *, silent: bool = False, fails: bool = False) -> None:
        self.tensors = [
            TensorSpec(IMAGE, True, "uint8", (-1, H, W, 3)),
            TensorSpec(MAP, False, "float32", (-1, 2, 6)),
            TensorSpec(SCORE, False, "float32", (-1,)),
        ]
        self.max_batch, self.silent, self.fails = 4, silent, fails

    def prepare(self, batch: int, addresses: Mapping[str, int]) -> Copies:
        return Copies(batch, addresses, self.silent, self.fails)

    def close(self) -> None:
        pass


@pytest.fixture(params=[PyCuda, CudaPython])
def cuda(request: pytest.FixtureRequest) -> PyCuda | CudaPython:
    if missing_cuda_package() is not None:
        pytest.skip("no package for CUDA")
    try:
        return request.param()  # type: ignore[no-any-return]
    except UnavailableError as error:
        pytest.skip(str(error))


def frames(count: int, seed: int = 0) -> np.ndarray:
    """Bytes that are finite floats."""
    values = np.random.default_rng(seed).normal(size=(count, 12)).astype(np.float32)
    return values.view(np.uint8).reshape(count, H, W, 3)


def assert_copied(images: np.ndarray, runner: TensorRtRunner) -> None:
    results = runner.run(images)
    assert len(results) == len(images)
    for image, result in zip(images, results, strict=True):
        floats = image.reshape(-1).view(np.float32)
        np.testing.assert_array_equal(result.anomaly_map.ravel(), floats)
        assert result.score == floats[0]


def test_every_batch_comes_back_bit_for_bit(cuda: PyCuda | CudaPython) -> None:
    with TensorRtRunner(CopyEngine(), cuda) as runner:
        for seed, count in enumerate((1, 4, 2, 9, 1, 3)):
            assert_copied(frames(count, seed), runner)


def test_a_thousand_frames_each_get_their_own_answer(cuda: PyCuda | CudaPython) -> None:
    with TensorRtRunner(CopyEngine(), cuda) as runner:
        for seed in range(1000):
            assert_copied(frames(1, seed), runner)


def test_an_engine_that_does_nothing_gives_nan_not_the_last_score(
    cuda: PyCuda | CudaPython,
) -> None:
    with TensorRtRunner(engine := CopyEngine(), cuda) as runner:
        assert_copied(frames(1), runner)
        engine.silent = True
        assert all(np.isnan(each.score) for each in runner.run(frames(2)))


def test_a_failure_while_a_graph_is_recorded_leaves_the_runner_usable(
    cuda: PyCuda | CudaPython,
) -> None:
    with TensorRtRunner(engine := CopyEngine(fails=True), cuda) as runner:
        with pytest.raises(UnavailableError, match="a test"):
            runner.run(frames(1))
        engine.fails = False
        assert_copied(frames(1), runner)


def test_another_thread_than_the_one_that_opened_it(cuda: PyCuda | CudaPython) -> None:
    with TensorRtRunner(CopyEngine(), cuda) as runner, ThreadPoolExecutor(1) as pool:
        pool.submit(assert_copied, frames(2), runner).result()


def test_what_is_taken_of_the_device_is_what_was_allocated(cuda: PyCuda | CudaPython) -> None:
    size = 256 << 20  # far above the granularity of what the driver gives out
    with cuda.current():
        before = cuda.memory_used()
        address = cuda.allocate_device(size)
        assert size <= cuda.memory_used() - before < size + (64 << 20)
        cuda.free_device(address)
        assert cuda.memory_used() - before < 64 << 20


def test_closing_gives_all_memory_back() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")

    def free() -> int:
        return int(runtime.cudaMemGetInfo()[1])

    def once() -> None:
        engine = CopyEngine()
        engine.max_batch = 1 << 20  # 48 MB and 48 MB
        with TensorRtRunner(engine, CudaPython()) as runner:
            assert_copied(frames(3), runner)
            held.append(free())

    held: list[int] = []
    once()
    before = free()
    for _ in range(3):
        once()
    assert free() == before
    assert max(held) < before


FAULT = """
from metal_edge.errors import UnavailableError
from metal_edge.runtime.cuda_memory import {kind}
from metal_edge.runtime.tensorrt_runner import TensorRtRunner
import sys, numpy as np
sys.path[:0] = {path!r}
from test_tensorrt_on_gpu import CopyEngine, Copies, frames
class Wild(Copies):
    def enqueue(self, stream):
        self._copy(self._at["anomaly_map"], 0x10, 48, stream)
engine = CopyEngine()
engine.prepare = lambda batch, addresses: Wild(batch, addresses, False, False)
runner = TensorRtRunner(engine, {kind}())
try:
    runner.run(frames(1))
except (UnavailableError, AssertionError) as error:
    print("told:", type(error).__name__, error)
"""


def test_a_wild_address_is_an_error_not_an_answer(cuda: PyCuda | CudaPython) -> None:
    """In a process of its own: such an error stays with the process."""
    code = FAULT.format(kind=type(cuda).__name__, path=[str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "told:" in done.stdout, done.stdout + done.stderr
