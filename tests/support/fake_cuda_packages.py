"""The Python packages for CUDA as far as metal_edge uses them, on the memory of a `FakeCuda`.

They keep each package's habits: cuda-python returns (status, result...) and never raises, PyCUDA
raises its own error and frees what nobody refers to, libcuda writes through pointers.
"""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metal_edge.errors import UnavailableError
from support.fake_cuda import FakeCuda

STICKY = 700  # cudaErrorIllegalAddress
TOTAL = 1 << 33  # bytes of the device
_STREAM_NON_BLOCKING, _THREAD_LOCAL, _TO_DEVICE, _TO_HOST = 1, 1, 1, 2


class Runtime(ModuleType):
    """`cuda.bindings.runtime`."""

    cudaHostAllocDefault = 0  # noqa: N815
    cudaStreamNonBlocking = _STREAM_NON_BLOCKING  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=_TO_DEVICE, cudaMemcpyDeviceToHost=_TO_HOST
    )
    cudaStreamCaptureMode = SimpleNamespace(  # noqa: N815
        cudaStreamCaptureModeThreadLocal=_THREAD_LOCAL
    )

    def __init__(self, fake: FakeCuda) -> None:
        super().__init__("cuda.bindings.runtime")
        self._fake = fake
        self._host: dict[int, NDArray[np.uint8]] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(found):
            return found

        def call(*arguments: Any) -> tuple[Any, ...]:
            try:
                result = found(*arguments)
            except UnavailableError:
                return (STICKY, None)
            if name == "cudaMemGetInfo":
                return (0, *result)
            return (0,) if result is None else (0, result)

        return call

    def cudaGetErrorString(self, status: int) -> bytes:  # noqa: N802
        return b"an illegal memory access was encountered"

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        major, minor = map(int, self._fake.compute_capability.split("."))
        return SimpleNamespace(name=self._fake.gpu.encode(), major=major, minor=minor)

    def cudaSetDevice(self, device: int) -> None:  # noqa: N802
        self._fake._depth = 1

    def cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return TOTAL - self._fake.memory_used(), TOTAL

    def cudaHostAlloc(self, size: int, flags: int) -> int:  # noqa: N802
        buffer = self._fake.allocate_host(size)
        self._host[buffer.ctypes.data] = buffer
        return int(buffer.ctypes.data)

    def cudaFreeHost(self, address: int) -> None:  # noqa: N802
        self._fake.free_host(self._host.pop(address))

    def cudaMalloc(self, size: int) -> int:  # noqa: N802
        return self._fake.allocate_device(size)

    def cudaFree(self, address: int) -> None:  # noqa: N802
        self._fake.free_device(address)

    def cudaStreamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        assert flags == _STREAM_NON_BLOCKING
        return self._fake.create_stream()

    def cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        self._fake.destroy_stream(stream)

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> None:
        if kind == _TO_DEVICE:
            self._fake.upload(target, _bytes_at(source, size), stream)
        else:
            self._fake.download(_bytes_at(target, size), source, stream)

    def cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        self._fake.synchronize(stream)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:  # noqa: N802
        assert mode == _THREAD_LOCAL
        self._fake.begin_capture(stream)

    def cudaStreamEndCapture(self, stream: int) -> int:  # noqa: N802
        return self._fake.end_capture(stream)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> int:  # noqa: N802
        self._fake._note("instantiate")
        return self._fake._keep("graph", self._fake.live["graph", graph])

    def cudaGraphDestroy(self, graph: int) -> None:  # noqa: N802
        self._fake.destroy_graph(graph)

    def cudaGraphExecDestroy(self, graph: int) -> None:  # noqa: N802
        self._fake.destroy_graph(graph)

    def cudaGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        self._fake.launch(graph, stream)


class Driver(ModuleType):
    """`pycuda.driver`."""

    class Error(Exception):
        pass

    def __init__(self, fake: FakeCuda) -> None:
        super().__init__("pycuda.driver")
        self._fake = fake
        self.init = lambda: None

    def Device(self, number: int) -> Any:  # noqa: N802
        capability = tuple(map(int, self._fake.compute_capability.split(".")))
        return SimpleNamespace(
            name=lambda: self._fake.gpu,
            compute_capability=lambda: capability,
            retain_primary_context=lambda: _Context(self._fake),
        )

    def pagelocked_empty(self, size: int, dtype: Any) -> NDArray[np.uint8]:
        buffer = self._raise(self._fake.allocate_host, size)
        free = lambda: self._raise(self._fake.free_host, buffer)  # noqa: E731
        return _Pinned(buffer, free)

    def mem_get_info(self) -> tuple[int, int]:
        return TOTAL - self._raise(self._fake.memory_used), TOTAL

    def mem_alloc(self, size: int) -> Any:
        return _Memory(self, self._raise(self._fake.allocate_device, size))

    def Stream(self) -> Any:  # noqa: N802
        return _Stream(self, self._raise(self._fake.create_stream))

    def memcpy_htod_async(self, target: int, source: NDArray[np.uint8], stream: Any) -> None:
        plain = _bytes_at(source.ctypes.data, source.nbytes)
        handle = stream.handle
        del stream  # see `_Stream`
        self._raise(self._fake.upload, target, plain, handle)

    def memcpy_dtoh_async(self, target: NDArray[np.uint8], source: int, stream: Any) -> None:
        plain = _bytes_at(target.ctypes.data, target.nbytes)
        handle = stream.handle
        del stream  # see `_Stream`
        self._raise(self._fake.download, plain, source, handle)

    def _raise(self, action: Any, *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except UnavailableError as error:
            raise self.Error("an illegal memory access was encountered") from error


class _Context:
    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake

    def push(self) -> None:
        self._fake._depth += 1

    def pop(self) -> None:
        self._fake._depth -= 1

    def detach(self) -> None:
        self._fake.close()


class _Pinned(np.ndarray[Any, Any]):
    """An array whose base frees it, as PyCUDA's."""

    def __new__(cls, buffer: NDArray[np.uint8], free: Any) -> _Pinned:
        made = buffer.view(cls)
        made.free = free
        return made

    def __array_finalize__(self, origin: Any) -> None:
        self.free = getattr(origin, "free", None)

    @property
    def base(self) -> Any:
        return SimpleNamespace(free=self.free)


class _Memory:
    def __init__(self, driver: Driver, address: int) -> None:
        self._driver, self._address = driver, address

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._driver._raise(self._driver._fake.free_device, self._address)


class _Stream:
    """Destroyed with its last reference. PyCUDA is C++, whose frames, unlike those here, are not
    held by the traceback of an error; so they let go of the stream before they raise."""

    def __init__(self, driver: Driver, handle: int) -> None:
        self._driver, self.handle = driver, handle

    def synchronize(self) -> None:
        driver, handle = self._driver, self.handle
        del self
        driver._raise(driver._fake.synchronize, handle)

    def __del__(self) -> None:
        self._driver._fake.destroy_stream(self.handle)


class Library:
    """libcuda.so.1, for graphs."""

    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake

    def cuStreamBeginCapture_v2(self, stream: Any, mode: Any) -> int:  # noqa: N802
        assert mode.value == _THREAD_LOCAL
        return self._status(self._fake.begin_capture, stream.value)

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        return self._status(self._fake.end_capture, stream.value, into=graph)

    def cuGraphInstantiateWithFlags(self, made: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        def instantiate() -> int:
            self._fake._note("instantiate")
            return self._fake._keep("graph", self._fake.live["graph", graph.value])

        return self._status(instantiate, into=made)

    def cuGraphDestroy(self, graph: Any) -> int:  # noqa: N802
        return self._status(self._fake.destroy_graph, graph.value)

    def cuGraphExecDestroy(self, graph: Any) -> int:  # noqa: N802
        return self._status(self._fake.destroy_graph, graph.value)

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:  # noqa: N802
        return self._status(self._fake.launch, graph.value, stream.value)

    def cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"an illegal memory access was encountered"
        return 0

    @staticmethod
    def _status(action: Any, *arguments: Any, into: Any = None) -> int:
        try:
            result = action(*arguments)
        except UnavailableError:
            return STICKY
        if into is not None:
            into._obj.value = result
        return 0


def install_cuda_python(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = Runtime(fake)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)


def install_pycuda(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("pycuda")
    package.driver = Driver(fake)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(fake))


def _bytes_at(address: int, size: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
