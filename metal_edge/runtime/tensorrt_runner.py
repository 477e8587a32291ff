"""The `Runner` over a TensorRT plan: buffers are allocated once, a frame is one graph launch.

Per batch size a CUDA graph holds the whole way of a frame: pixels to the device, network, map and
score back. The score on the device and the first pixel of each map are set to NaN at the graph's
start, so that an execution which silently did nothing, or left out one of them, yields NaN, which
the decision core answers with `unknown`, and never what the frame before had.

This file knows TensorRT and CUDA only as the protocols `Engine` and `Cuda`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from metal_edge.domain import Inspection
from metal_edge.errors import BundleError, UnavailableError
from metal_edge.runtime.base import check_images
from metal_edge.runtime.cuda_memory import Bytes, Cuda

IMAGE, MAP, SCORE = "image", "anomaly_map", "score"
_EXPORT = "export it with `metal-edge export`"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `shape` has -1 where a dimension is free."""

    name: str
    is_input: bool
    dtype: str  # NumPy's name
    shape: tuple[int, ...]


class Execution(Protocol):
    """A plan made ready for one batch size and fixed addresses."""

    def enqueue(self, stream: int) -> None:
        """Queues the network once. Raises UnavailableError."""

    def close(self) -> None:
        """Frees it."""


class Engine(Protocol):
    """A deserialised plan."""

    @property
    def tensors(self) -> Sequence[TensorSpec]:
        """All inputs and outputs."""

    @property
    def max_batch(self) -> int:
        """Largest batch of one execution."""

    def prepare(self, batch: int, addresses: Mapping[str, int]) -> Execution:
        """Fixes batch size and device addresses by tensor name. Raises UnavailableError."""

    def close(self) -> None:
        """Frees it."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Shapes of one image's tensors: uint8 [H, W, 3] in, float32 [h, w] out."""

    image: tuple[int, int, int]
    anomaly_map: tuple[int, int]


def check_tensors(tensors: Sequence[TensorSpec], what: str) -> Signature:
    """Refuses a network that is not ours.

    Args:
        tensors: its inputs and outputs.
        what: how to name it in an error.

    Raises:
        BundleError: names the tensor that is missing, too many, or of another type or shape.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    wanted = {IMAGE: (True, "uint8", 4), MAP: (False, "float32", 3), SCORE: (False, "float32", 1)}
    strange = sorted(by_name.keys() - wanted.keys())
    if strange:
        raise BundleError(f"{what} has an unknown tensor {strange[0]}", _EXPORT)
    for name, (is_input, dtype, rank) in wanted.items():
        tensor = by_name.get(name)
        if tensor is None:
            raise BundleError(f"{what} has no tensor {name}", _EXPORT)
        fixed = all(size > 0 for size in tensor.shape[1:])
        good = (tensor.is_input, tensor.dtype, len(tensor.shape)) == (is_input, dtype, rank)
        if not (good and fixed):
            side = "input" if tensor.is_input else "output"
            raise BundleError(
                f"{what}: {name} is an {side} {tensor.dtype} {list(tensor.shape)}, expected an"
                f" {'input' if is_input else 'output'} {dtype} of rank {rank} with one free"
                " dimension, the batch",
                _EXPORT,
            )
    batches = {by_name[name].shape[0] for name in wanted}
    if batches not in ({-1}, {1}):
        raise BundleError(f"{what}: its batch is neither free nor 1", _EXPORT)
    height, width, channels = by_name[IMAGE].shape[1:]
    if channels != 3:
        raise BundleError(f"{what}: image has {channels} channels, not 3", _EXPORT)
    rows, columns = by_name[MAP].shape[1:]
    return Signature((height, width, channels), (rows, columns))


class _Buffer:
    """Pinned host memory and device memory of one tensor, for the largest batch."""

    def __init__(self, cuda: Cuda, memory: ExitStack, item: int, batch: int) -> None:
        self._item = item  # bytes per image
        self._host = cuda.allocate_host(batch * item)
        memory.callback(cuda.free_host, self._host)
        self.address = cuda.allocate_device(batch * item)
        memory.callback(cuda.free_device, self.address)

    def host(self, batch: int) -> Bytes:
        """The pinned bytes of the first `batch` images."""
        return self._host[: batch * self._item]

    def addresses(self, batch: int) -> Iterator[int]:
        """Of the first `batch` images on the device."""
        return (self.address + image * self._item for image in range(batch))


class TensorRtRunner:
    """Runs a plan. See `Runner`.

    Batches beyond the plan's largest are run in pieces. The first run of a batch size prepares
    its graph; after that no memory of CUDA is allocated, pinned or on the device.

    What `run` returns is the caller's for good: a copy, the one thing that a frame allocates. Maps
    outlive the next frames (evidence is written when the disk has time for it), and how long,
    nobody here knows. A ring of buffers would be right until the disk is slow, and then show one
    part's map, or decide by it, as another's. It would not be faster either: the copy has to be
    made, and the allocator gives back the block of a map that was let go
    (docs/tensorrt.md).

    Args:
        engine: the plan; the runner closes it, also when this constructor fails.
        cuda: the GPU, likewise.
        what: how to name the plan in an error.
        attention: whose attention the plan has, for those who show it.

    Raises:
        BundleError: the plan's inputs and outputs are not ours.
        UnavailableError: the GPU gives no memory.
    """

    def __init__(
        self,
        engine: Engine,
        cuda: Cuda,
        what: str = "the TensorRT plan",
        attention: str = "native",
    ) -> None:
        self._cuda, self._engine = cuda, engine
        self.attention = attention
        self._graphs: dict[int, int] = {}  # by batch size
        self._closed = False
        self._memory = ExitStack()
        self._memory.callback(engine.close)
        try:
            self._signature = check_tensors(engine.tensors, what)
            with cuda.current():
                self._allocate()
        except BaseException:
            self.close()
            raise

    def _allocate(self) -> None:
        cuda, memory, batch = self._cuda, self._memory, self._engine.max_batch
        self._stream = cuda.create_stream()
        memory.callback(cuda.destroy_stream, self._stream)
        self._image = _Buffer(cuda, memory, math.prod(self._signature.image), batch)
        self._map = _Buffer(cuda, memory, 4 * math.prod(self._signature.anomaly_map), batch)
        self._score = _Buffer(cuda, memory, 4, batch)
        self._nothing = cuda.allocate_host(4 * batch)
        memory.callback(cuda.free_host, self._nothing)
        self._nothing.view(np.float32)[:] = np.nan

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, 3."""
        return self._signature.image

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        """See `Runner.run`."""
        check_images(images, self._signature.image)
        if self._closed:
            raise UnavailableError("the TensorRT runner is closed", "load the bundle again")
        largest = self._engine.max_batch
        results: list[Inspection] = []
        with self._cuda.current():
            for start in range(0, len(images), largest):
                results += self._run_piece(images[start : start + largest])
        return results

    def _run_piece(self, images: NDArray[np.uint8]) -> list[Inspection]:
        batch = len(images)
        graph = self._graphs.get(batch) or self._prepare(batch)
        np.copyto(self._image.host(batch).reshape(images.shape), images)
        self._cuda.launch(graph, self._stream)
        self._cuda.synchronize(self._stream)
        maps = self._map.host(batch).view(np.float32).reshape(batch, *self._signature.anomaly_map)
        scores = self._score.host(batch).view(np.float32)
        return [Inspection(m.copy(), float(s)) for m, s in zip(maps, scores, strict=True)]

    def _prepare(self, batch: int) -> int:
        """Captures the graph of a batch size; on an error nothing of it is left."""
        addresses = {
            IMAGE: self._image.address,
            MAP: self._map.address,
            SCORE: self._score.address,
        }
        with ExitStack() as undo:
            execution = self._engine.prepare(batch, addresses)
            undo.callback(execution.close)
            # TensorRT finishes a context's set-up in its first execution, which a capture forbids.
            self._queue(execution, batch)
            self._cuda.synchronize(self._stream)
            graph = self._capture(execution, batch)
            undo.callback(self._cuda.destroy_graph, graph)
            self._memory.callback(undo.pop_all().close)
        self._graphs[batch] = graph
        return graph

    def _capture(self, execution: Execution, batch: int) -> int:
        self._cuda.begin_capture(self._stream)
        try:
            self._queue(execution, batch)
        except BaseException:
            self._cuda.abort_capture(self._stream)
            raise
        return self._cuda.end_capture(self._stream)

    def _queue(self, execution: Execution, batch: int) -> None:
        cuda, stream = self._cuda, self._stream
        cuda.upload(self._image.address, self._image.host(batch), stream)
        cuda.upload(self._score.address, self._nothing[: 4 * batch], stream)
        for address in self._map.addresses(batch):
            cuda.upload(address, self._nothing[:4], stream)
        execution.enqueue(stream)
        cuda.download(self._map.host(batch), self._map.address, stream)
        cuda.download(self._score.host(batch), self._score.address, stream)

    def close(self) -> None:
        """Frees everything, once. All of it is tried, whatever fails on the way."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._cuda.current():
                self._memory.close()
        finally:
            self._cuda.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
