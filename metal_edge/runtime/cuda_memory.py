"""The one file that touches CUDA memory: pinned buffers, device buffers, a stream, graphs.

`Cuda` is all that the TensorRT runner needs of a GPU, in plain integers and NumPy arrays, so that
its logic can be tested against a few lines that copy bytes. Two implementations: over PyCUDA, and
over NVIDIA's cuda-python where PyCUDA is absent. Both use device 0 and its primary context, which
is also TensorRT's. Neither package is imported before `open_cuda` is called.

Every failure is an UnavailableError that names the call. Errors of CUDA are mostly sticky: after
one of them the later calls fail as well, until the process is started anew.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metal_edge.errors import UnavailableError

Bytes = NDArray[np.uint8]
_DEVICE = 0
_RESTART = "see the kernel's log (dmesg), then restart the service"


class Cuda(Protocol):
    """One GPU. Addresses, streams and graphs are the driver's handles, as integers.

    All methods but `current` and `close` want to be called inside `current()`. What is allocated
    must be freed before `close`.
    """

    @property
    def gpu(self) -> str:
        """The device's name."""

    @property
    def compute_capability(self) -> str:
        """For example "8.7"."""

    def current(self) -> AbstractContextManager[None]:
        """Makes the device current in the calling thread."""

    def memory_used(self) -> int:
        """Bytes taken on the device, by whatever process; on a Jetson of the machine's memory."""

    def allocate_host(self, size: int) -> Bytes:
        """Pinned host memory, uint8 [size]: the only kind that copies in the background."""

    def free_host(self, buffer: Bytes) -> None:
        """Frees what `allocate_host` gave; no view of it may be used afterwards."""

    def allocate_device(self, size: int) -> int:
        """Address of `size` bytes on the device."""

    def free_device(self, address: int) -> None:
        """Frees what `allocate_device` gave."""

    def create_stream(self) -> int:
        """A stream."""

    def destroy_stream(self, stream: int) -> None:
        """Destroys a stream."""

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """Queues a copy of pinned `source` (C-contiguous) to the device."""

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """Queues a copy from the device that fills pinned `target` (C-contiguous)."""

    def synchronize(self, stream: int) -> None:
        """Waits until everything queued is done; raises if any of it failed."""

    def begin_capture(self, stream: int) -> None:
        """From now on `stream` records what is queued instead of doing it."""

    def end_capture(self, stream: int) -> int:
        """Ends recording; an executable graph."""

    def abort_capture(self, stream: int) -> None:
        """Ends recording after an error and drops what was recorded; never raises."""

    def launch(self, graph: int, stream: int) -> None:
        """Queues a whole graph."""

    def destroy_graph(self, graph: int) -> None:
        """Destroys a graph."""

    def close(self) -> None:
        """Lets go of the device."""


def missing_cuda_package() -> str | None:
    """What is missing for `open_cuda`, or None; imports nothing of CUDA."""
    if importlib.util.find_spec("pycuda") or _has_cuda_python():
        return None
    return "neither PyCUDA nor cuda-python is installed"


def open_cuda() -> Cuda:
    """PyCUDA where it works, else cuda-python.

    Raises:
        UnavailableError: neither works; says why for each.
    """
    reasons = []
    for kind in (PyCuda, CudaPython):
        try:
            return kind()
        except UnavailableError as error:
            reasons.append(error.what)
    raise UnavailableError(
        f"no access to the GPU: {'; '.join(reasons)}",
        "install pycuda or cuda-python, and check the NVIDIA driver",
    )


def _has_cuda_python() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings.runtime") is not None
    except ModuleNotFoundError:  # no package `cuda` at all
        return False


class PyCuda:
    """`Cuda` over PyCUDA. It has no graphs (2026.1), so those come from the driver itself."""

    def __init__(self) -> None:
        try:
            from pycuda import driver  # noqa: PLC0415
        except ImportError as error:  # also raised where there is no driver
            raise UnavailableError(f"PyCUDA cannot be used ({error})") from error
        self._driver: Any = driver
        self._objects: dict[int, Any] = {}  # PyCUDA frees what nobody refers to
        self._graphs = _DriverGraphs()
        with self._failures("initialise"):
            driver.init()
            device = driver.Device(_DEVICE)
            self._gpu = str(device.name())
            self._capability = ".".join(str(n) for n in device.compute_capability())
            self._context: Any = device.retain_primary_context()

    @property
    def gpu(self) -> str:
        """See `Cuda`."""
        return self._gpu

    @property
    def compute_capability(self) -> str:
        """See `Cuda`."""
        return self._capability

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda`."""
        with self._failures("push context"):
            self._context.push()
        try:
            yield
        finally:
            with self._failures("pop context"):
                self._context.pop()

    def memory_used(self) -> int:
        """See `Cuda`."""
        with self._failures("ask for free memory"):
            free, total = self._driver.mem_get_info()
        return int(total) - int(free)

    def allocate_host(self, size: int) -> Bytes:
        """See `Cuda`."""
        with self._failures(f"allocate {size} bytes of pinned memory"):
            buffer: Bytes = self._driver.pagelocked_empty(size, np.uint8)
        return buffer

    def free_host(self, buffer: Bytes) -> None:
        """See `Cuda`."""
        base: Any = buffer.base  # PyCUDA's handle of the allocation
        with self._failures("free pinned memory"):
            base.free()

    def allocate_device(self, size: int) -> int:
        """See `Cuda`."""
        with self._failures(f"allocate {size} bytes on the device"):
            memory = self._driver.mem_alloc(size)
        self._objects[int(memory)] = memory
        return int(memory)

    def free_device(self, address: int) -> None:
        """See `Cuda`."""
        with self._failures("free device memory"):
            self._objects.pop(address).free()

    def create_stream(self) -> int:
        """See `Cuda`."""
        with self._failures("create a stream"):
            stream = self._driver.Stream()
        self._objects[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        """See `Cuda`."""
        del self._objects[stream]

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """See `Cuda`."""
        with self._failures("copy to the device"):
            self._driver.memcpy_htod_async(address, source, self._objects[stream])

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """See `Cuda`."""
        with self._failures("copy from the device"):
            self._driver.memcpy_dtoh_async(target, address, self._objects[stream])

    def synchronize(self, stream: int) -> None:
        """See `Cuda`."""
        with self._failures("execute"):
            self._objects[stream].synchronize()

    def begin_capture(self, stream: int) -> None:
        """See `Cuda`."""
        self._graphs.begin(stream)

    def end_capture(self, stream: int) -> int:
        """See `Cuda`."""
        return self._graphs.end(stream)

    def abort_capture(self, stream: int) -> None:
        """See `Cuda`."""
        self._graphs.abort(stream)

    def launch(self, graph: int, stream: int) -> None:
        """See `Cuda`."""
        self._graphs.launch(graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """See `Cuda`."""
        self._graphs.destroy(graph)

    def close(self) -> None:
        """See `Cuda`."""
        with self._failures("release the context"):
            self._context.detach()

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise UnavailableError(f"CUDA failed to {what} ({error})", _RESTART) from error


class _DriverGraphs:
    """Stream capture through libcuda's C interface (CUDA 12 and 13)."""

    _THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads' calls do not disturb

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise UnavailableError(f"no CUDA driver ({error})", _RESTART) from error

    def begin(self, stream: int) -> None:
        mode = ctypes.c_int(self._THREAD_LOCAL)
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), mode)

    def end(self, stream: int) -> int:
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            flags = ctypes.c_ulonglong(0)
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, flags)
        finally:
            self._call("cuGraphDestroy", graph)
        return int(executable.value or 0)

    def abort(self, stream: int) -> None:
        graph = ctypes.c_void_p()
        # Its status only repeats the error that led here.
        self._library.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        if graph.value:
            self._library.cuGraphDestroy(graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            words = (text.value or b"unknown error").decode("ascii", "replace")
            raise UnavailableError(f"CUDA failed in {name} ({words}, {status})", _RESTART)


class CudaPython:
    """`Cuda` over cuda-python's `cuda.bindings.runtime`."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime  # noqa: PLC0415
        except (ImportError, RuntimeError) as error:  # RuntimeError: library without symbols
            raise UnavailableError(f"cuda-python cannot be used ({error})") from error
        self._runtime: Any = runtime
        properties = self._call("cudaGetDeviceProperties", _DEVICE)
        self._gpu = str(properties.name, "utf-8", "replace")
        self._capability = f"{properties.major}.{properties.minor}"

    @property
    def gpu(self) -> str:
        """See `Cuda`."""
        return self._gpu

    @property
    def compute_capability(self) -> str:
        """See `Cuda`."""
        return self._capability

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Cuda`."""
        self._call("cudaSetDevice", _DEVICE)
        yield

    def memory_used(self) -> int:
        """See `Cuda`."""
        free, total = self._results("cudaMemGetInfo")
        return int(total) - int(free)

    def allocate_host(self, size: int) -> Bytes:
        """See `Cuda`."""
        address = int(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault))
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.ctypeslib.as_array(memory)

    def free_host(self, buffer: Bytes) -> None:
        """See `Cuda`."""
        self._call("cudaFreeHost", buffer.ctypes.data)

    def allocate_device(self, size: int) -> int:
        """See `Cuda`."""
        return int(self._call("cudaMalloc", size))

    def free_device(self, address: int) -> None:
        """See `Cuda`."""
        self._call("cudaFree", address)

    def create_stream(self) -> int:
        """See `Cuda`."""
        flags = self._runtime.cudaStreamNonBlocking
        return int(self._call("cudaStreamCreateWithFlags", flags))

    def destroy_stream(self, stream: int) -> None:
        """See `Cuda`."""
        self._call("cudaStreamDestroy", stream)

    def upload(self, address: int, source: Bytes, stream: int) -> None:
        """See `Cuda`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, kind, stream)

    def download(self, target: Bytes, address: int, stream: int) -> None:
        """See `Cuda`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, kind, stream)

    def synchronize(self, stream: int) -> None:
        """See `Cuda`."""
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """See `Cuda`."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """See `Cuda`."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def abort_capture(self, stream: int) -> None:
        """See `Cuda`."""
        _, graph = self._runtime.cudaStreamEndCapture(stream)  # repeats the error that led here
        if graph is not None and int(graph):
            self._runtime.cudaGraphDestroy(graph)

    def launch(self, graph: int, stream: int) -> None:
        """See `Cuda`."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """See `Cuda`."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """The primary context is the process's; nothing is held."""

    def _call(self, name: str, *arguments: Any) -> Any:
        """The one result of a call, or None."""
        results = self._results(name, *arguments)
        return results[0] if results else None

    def _results(self, name: str, *arguments: Any) -> list[Any]:
        """Calls the runtime and unpacks its (status, result...) tuple."""
        results: list[Any]
        status, *results = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            _, text = self._runtime.cudaGetErrorString(status)
            words = bytes(text or b"unknown error").decode("ascii", "replace")
            raise UnavailableError(f"CUDA failed in {name} ({words}, {int(status)})", _RESTART)
        return results
