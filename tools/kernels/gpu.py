"""The kernels on a real GPU, from NumPy arrays: the same library, compiled by nvcc.

What tests do to the emulation they do to the GPU: `GpuLibrary` stands in for `HostLibrary`, and
`GpuBlock` for `Block`. Every array is copied to the device and back around each launch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tools.kernels import block, build
from tools.kernels.attention import (
    ALL_HEAD_DIMS,
    FOLDER,
    SOURCES,
    Array,
    Buffers,
    Call,
    HostLibrary,
    LaunchError,
    Problem,
    head_dims_define,
)

API = build.SIMT / "gpu_api.cu"
ARCHITECTURE = "METAL_EDGE_GPU_ARCHITECTURE"  # environment: "sm_90" and the like
WHERE = "METAL_EDGE_KERNELS_ON"  # environment: "gpu", or the emulation
_TEXT_SIZE = 256
_GUARD = 256  # bytes after every array: a kernel that writes there is found
_FILL = 0xA5


def on_gpu() -> bool:
    """Are the kernels' tests to run on this machine's GPU? METAL_EDGE_KERNELS_ON=gpu says so."""
    return os.environ.get(WHERE) == "gpu"


def architecture() -> str:
    """What nvcc compiles for: $METAL_EDGE_GPU_ARCHITECTURE, else the GPU of this machine."""
    return os.environ.get(ARCHITECTURE, "native")


class GpuMemory:
    """Arrays on device 0.

    Args:
        library: a build that contains kernels/simt/gpu_api.cu.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.simt_last_error.restype = ctypes.c_char_p

    def check(self, status: int) -> None:
        """Raises LaunchError, with CUDA's words, unless `status` is 0."""
        if status:
            words = self._library.simt_last_error().decode()
            raise LaunchError(f"status {status}: {words}" if words else f"status {status}")

    def describe(self) -> str:
        """The GPU's name and compute capability."""
        text = ctypes.create_string_buffer(_TEXT_SIZE)
        self.check(self._library.gpu_describe(text, _TEXT_SIZE))
        return text.value.decode()

    @contextmanager
    def copies(self, arrays: Mapping[str, Array]) -> Iterator[dict[str, int]]:
        """Device addresses of copies, until the block ends."""
        addresses: dict[str, int] = {}
        try:
            for name, array in arrays.items():
                address = ctypes.c_void_p()
                size = ctypes.c_uint64(array.nbytes + _GUARD)
                self.check(self._library.gpu_allocate(ctypes.byref(address), size))
                addresses[name] = int(address.value or 0)
                self._copy(addresses[name], array.ctypes.data, array.nbytes)
                guard = np.full(_GUARD, _FILL, np.uint8)
                self._copy(addresses[name] + array.nbytes, guard.ctypes.data, _GUARD)
            yield addresses
        finally:
            for address_ in addresses.values():
                self.check(self._library.gpu_free(ctypes.c_void_p(address_)))

    def finish(self, arrays: Mapping[str, Array], addresses: Mapping[str, int]) -> None:
        """Waits for the kernels and fills every array with what its copy has become.

        Raises:
            LaunchError: a kernel failed, or wrote behind an array.
        """
        self.check(self._library.gpu_wait())
        for name, array in arrays.items():
            self._copy(array.ctypes.data, addresses[name], array.nbytes)
            guard = np.empty(_GUARD, np.uint8)
            self._copy(guard.ctypes.data, addresses[name] + array.nbytes, _GUARD)
            if (guard != _FILL).any():
                raise LaunchError(f"the kernel wrote behind {name}")

    def _copy(self, to: int, source: int, size: int) -> None:
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self.check(self._library.gpu_copy(*pointers, ctypes.c_uint64(size)))


def describe() -> str:
    """Name and compute capability of this machine's GPU, "..., compute capability 9.0".

    Raises:
        build.MissingToolError: no nvcc.
        LaunchError: no GPU.
    """
    library = ctypes.CDLL(str(build.gpu_library([API], architecture())))
    return GpuMemory(library).describe()


class GpuLibrary(HostLibrary):
    """The attention kernels for this machine's GPU.

    Raises:
        build.MissingToolError: no nvcc.
        LaunchError: no GPU.
    """

    def __init__(self, head_dims: Sequence[int] = ALL_HEAD_DIMS, folder: Path = FOLDER) -> None:
        path = build.gpu_library(
            [*(folder / name for name in SOURCES), API], architecture(), head_dims_define(head_dims)
        )
        self._bind(path, head_dims)
        self._memory = GpuMemory(self._library)
        self.device = self._memory.describe()

    def execute(self, call: Call, seed: int = 0) -> None:
        """See `HostLibrary`; the GPU chooses its own order."""
        named = {f"input {index}": tensor for index, tensor in enumerate(call.tensors)}
        arrays = named | {"out": call.room, "mask": call.mask, "tiles": call.tiles}
        if call.buffers.slopes:
            arrays["slopes"] = call.slopes
        with self._memory.copies(arrays) as at:
            q, k, v = (at[f"input {index}"] + offset for index, offset in call.places)
            buffers = Buffers(q, k, v, at["out"], at["mask"], at["tiles"], at.get("slopes"))
            self.launch(call.problem, buffers)
            self._memory.finish(arrays, at)

    def launcher(self, problem: Problem, buffers: Buffers) -> Callable[[int], None]:
        """A launch on a CUDA stream, for device memory that is the caller's; see `launch`."""
        given = ctypes.byref(problem), ctypes.byref(buffers)

        def launch(stream: int, _kept: object = (problem, buffers)) -> None:
            self._memory.check(self._library.attention_launch(*given, ctypes.c_void_p(stream)))

        return launch


class GpuBlock(block.Block):
    """The fused block on this machine's GPU; errors as of `GpuLibrary`."""

    def __init__(self) -> None:
        path = build.gpu_library([*block.SOURCES, API], architecture())
        super().__init__(ctypes.CDLL(str(path)))
        self._memory = GpuMemory(self._library)
        self.device = self._memory.describe()

    def launch(self, problem: block.Problem, arrays: dict[str, Array]) -> int:
        """See `Block`."""
        with self._memory.copies(arrays) as addresses:
            buffers = block.Buffers(**addresses)
            status = int(
                self._library.block_launch(ctypes.byref(problem), ctypes.byref(buffers), None)
            )
            if status == 0:
                self._memory.finish(arrays, addresses)
        return status

    def launcher(self, problem: block.Problem, buffers: block.Buffers) -> Callable[[int], None]:
        """See `GpuLibrary.launcher`."""
        given = ctypes.byref(problem), ctypes.byref(buffers)

        def launch(stream: int, _kept: object = (problem, buffers)) -> None:
            self._memory.check(self._library.block_launch(*given, ctypes.c_void_p(stream)))

        return launch
