"""A GPU of NumPy arrays: copies bytes for real, does nothing before it is waited for.

Queued work runs at `synchronize`, as late as CUDA may run it, so that a forgotten wait shows as a
wrong result. Every call is counted and may be told to fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metal_edge.errors import UnavailableError
from metal_edge.runtime.tensorrt_runner import IMAGE, MAP, SCORE, TensorSpec

Bytes = NDArray[np.uint8]
Work = Callable[[], None]


class FakeCuda:
    """See `metal_edge.runtime.cuda_memory.Cuda`.

    Attributes:
        calls: how often each method was called, failures included.
        live: what is allocated now, by kind and handle.
        fail: (method, n): its n-th call raises.
        device: all who use the same device, this one included.
    """

    gpu = "Fake Orin"
    compute_capability = "8.7"

    def __init__(self, fail: tuple[str, int] | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.live: dict[tuple[str, int], Any] = {}
        self.fail = fail
        self.device = [self]
        self.closed = 0
        self._depth = 0
        self._next = 0x1000
        self._pending: list[Work] = []
        self._recording: list[Work] | None = None

    @contextmanager
    def current(self) -> Iterator[None]:
        self._note("current", outside=True)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def memory_used(self) -> int:
        self._note("memory_used")
        live = [item for cuda in self.device for item in cuda.live.items()]
        return sum(what.nbytes for (kind, _), what in live if kind == "device")

    def allocate_host(self, size: int) -> Bytes:
        self._note("allocate_host")
        buffer = np.full(size, 0xCD, np.uint8)
        self.live["host", id(buffer)] = buffer
        return buffer

    def free_host(self, buffer: Bytes) -> None:
        self._note("free_host")
        del self.live["host", id(buffer)]

    def allocate_device(self, size: int) -> int:
        self._note("allocate_device")
        return self._keep("device", np.full(size, 0xCD, np.uint8))

    def free_device(self, address: int) -> None:
        self._note("free_device")
        del self.live["device", address]

    def create_stream(self) -> int:
        self._note("create_stream")
        return self._keep("stream", None)

    def destroy_stream(self, stream: int) -> None:
        self._note("destroy_stream")
        del self.live["stream", stream]

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        self._note("upload")
        self.queue(stream, lambda: np.copyto(self.memory(address, source.size), source))

    def download(self, target: Bytes, address: int, stream: int) -> None:
        self._note("download")
        self.queue(stream, lambda: np.copyto(target, self.memory(address, target.size)))

    def synchronize(self, stream: int) -> None:
        assert self._recording is None, "a capture forbids waiting"
        pending, self._pending = self._pending, []
        self._note("synchronize")
        for work in pending:
            work()

    def begin_capture(self, stream: int) -> None:
        self._note("begin_capture")
        assert self._recording is None
        self._recording = []

    def end_capture(self, stream: int) -> int:
        recorded, self._recording = self._recording, None
        assert recorded is not None
        self._note("end_capture")
        return self._keep("graph", recorded)

    def abort_capture(self, stream: int) -> None:
        assert self._recording is not None
        self._recording = None

    def launch(self, graph: int, stream: int) -> None:
        self._note("launch")
        self._pending += self.live["graph", graph]

    def destroy_graph(self, graph: int) -> None:
        self._note("destroy_graph")
        del self.live["graph", graph]

    def close(self) -> None:
        assert not self.live, f"closed with {list(self.live)} allocated"
        assert self._depth == 0
        assert self._recording is None
        self.closed += 1

    def queue(self, stream: int, work: Work) -> None:
        """What a kernel launch does."""
        assert ("stream", stream) in self.live
        (self._pending if self._recording is None else self._recording).append(work)

    def memory(self, address: int, size: int) -> Bytes:
        """So many bytes of a device buffer, or of its rest."""
        for (kind, start), buffer in self.live.items():
            if kind == "device" and 0 <= address - start < buffer.size:
                assert address - start + size <= buffer.size
                return buffer[address - start :][:size]  # type: ignore[no-any-return]
        raise AssertionError(f"nothing is allocated at {address:#x}")

    def allocations(self) -> int:
        """How many buffers and graphs were asked for so far."""
        kinds = ("allocate_host", "allocate_device", "create_stream", "end_capture")
        return sum(self.calls[kind] for kind in kinds)

    def _keep(self, kind: str, what: Any) -> int:
        handle = self._next
        self._next += 0x100 + getattr(what, "nbytes", 0)  # no two buffers overlap
        self.live[kind, handle] = what
        return handle

    def _note(self, method: str, outside: bool = False) -> None:
        assert not self.closed, f"{method} after close"
        assert outside or self._depth > 0, f"{method} without a current device"
        self.calls[method] += 1
        if self.fail == (method, self.calls[method]):
            raise UnavailableError(f"{method} fails as planned")


class FakeEngine:
    """A plan whose map is the brightness of every second pixel, and whose score is its maximum.

    Attributes:
        silent: the outputs that executions leave as they are, and say nothing of it.
        prepared: batch sizes in the order of `prepare`.
    """

    def __init__(self, cuda: FakeCuda, side: int = 8, max_batch: int = 3) -> None:
        self.cuda, self.side, self.max_batch = cuda, side, max_batch
        self.silent: set[str] = set()
        self.closed = 0
        self.executions = 0
        self.prepared: list[int] = []
        self.fail_enqueue: int | None = None  # number of the call that fails
        self.enqueued = 0

    @property
    def tensors(self) -> list[TensorSpec]:
        half = self.side // 2
        return [
            TensorSpec(IMAGE, True, "uint8", (-1, self.side, self.side, 3)),
            TensorSpec(MAP, False, "float32", (-1, half, half)),
            TensorSpec(SCORE, False, "float32", (-1,)),
        ]

    def prepare(self, batch: int, addresses: Mapping[str, int]) -> FakeExecution:
        self.prepared.append(batch)
        self.executions += 1
        return FakeExecution(self, batch, dict(addresses))

    def close(self) -> None:
        assert self.executions == 0, "closed before its executions"
        self.closed += 1


class FakeExecution:
    """One batch size of `FakeEngine`."""

    def __init__(self, engine: FakeEngine, batch: int, addresses: dict[str, int]) -> None:
        self.engine, self.batch, self.addresses = engine, batch, addresses
        self.closed = False

    def enqueue(self, stream: int) -> None:
        self.engine.enqueued += 1
        if self.engine.enqueued == self.engine.fail_enqueue:
            raise UnavailableError("enqueue fails as planned")
        self.engine.cuda.queue(stream, self._execute)

    def _execute(self) -> None:
        assert not self.closed
        if self.engine.silent >= {MAP, SCORE}:
            return
        cuda, side = self.engine.cuda, self.engine.side
        pixels = cuda.memory(self.addresses[IMAGE], self.batch * side * side * 3)
        maps, scores = brightness(pixels.reshape(self.batch, side, side, 3))
        for name, values in ((MAP, maps), (SCORE, scores)):
            if name not in self.engine.silent:
                cuda.memory(self.addresses[name], values.nbytes)[:] = values.view(np.uint8).ravel()

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.engine.executions -= 1


def brightness(images: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What `FakeEngine` computes: uint8 [N, S, S, 3] -> float32 [N, S/2, S/2] and [N]."""
    maps = np.ascontiguousarray(images[:, ::2, ::2].mean(axis=3, dtype=np.float32) / 255)
    return maps, maps.max(axis=(1, 2))
