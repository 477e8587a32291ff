"""TensorRT's Python interface behind `Engine`: one code path from 10.3 to 11.4.

`trt` is the imported package, passed along: no file imports it before it is needed.
"""

from __future__ import annotations

import importlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metal_edge.errors import UnavailableError
from metal_edge.runtime.tensorrt_runner import IMAGE, TensorSpec

log = logging.getLogger(__name__)
_LAST_ERRORS = 8
_REBUILD = "build the plan again with `metal-edge build-engine --backend tensorrt`"


def import_tensorrt() -> Any:
    """The package `tensorrt`.

    Raises:
        UnavailableError: it is not installed, or does not find its libraries.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise UnavailableError(
            f"the tensorrt Python package cannot be used ({error})",
            "install TensorRT as JetPack or its package brings it",
        ) from error


def make_logger(trt: Any, sink: Callable[[str, str], None] | None = None) -> Any:
    """A logger for TensorRT that remembers its last errors.

    Args:
        trt: the package.
        sink: called with severity and text of every message but the most verbose. It must not
            raise: TensorRT calls it from code that no exception may cross.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # the package is untyped
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_LAST_ERRORS)

        def log(self, severity: Any, text: str) -> None:
            if severity in {trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR}:
                self.errors.append(text)
            if sink is not None and severity != trt.ILogger.VERBOSE:
                sink(str(severity).rpartition(".")[2], text)

    return Logger()


def last_error(logger: Any, otherwise: str = "it gave no reason") -> str:
    """TensorRT's own words on what just failed, and forgets them."""
    words = "; ".join(logger.errors) or otherwise
    logger.errors.clear()
    return words


def created(logger: Any, what: str, make: Callable[[], Any]) -> Any:
    """What `make` creates, a builder or a runtime for example.

    Where TensorRT creates nothing (no driver, no memory), its bindings return None or raise a
    TypeError about a nullptr; the reason is only in the log.

    Raises:
        UnavailableError: nothing was created; in TensorRT's words.
    """
    try:
        made, words = make(), "it gave no reason"
    except TypeError as error:
        made, words = None, str(error)
    if made is None:
        raise UnavailableError(
            f"TensorRT cannot create {what} ({last_error(logger, words)})",
            "check the NVIDIA driver, and what else takes the GPU's memory",
        )
    return made


def describe_tensors(trt: Any, tensors: Sequence[Any]) -> list[TensorSpec]:
    """TensorSpec of a network's ITensors."""
    return [
        TensorSpec(t.name, bool(t.is_network_input), _dtype(trt, t.dtype), _shape(t.shape))
        for t in tensors
    ]


class TensorRtEngine:
    """A deserialised plan; see `Engine`.

    Each batch size gets an execution context of its own: a captured graph holds on to the
    context's memory, which another batch size must not reshape.

    Raises:
        UnavailableError: TensorRT refuses the plan; in its own words.
    """

    def __init__(self, trt: Any, plan: bytes, what: str) -> None:
        self._trt = trt
        self._logger = make_logger(trt, _to_log)
        self._runtime: Any = created(self._logger, "a runtime", lambda: trt.Runtime(self._logger))
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise UnavailableError(
                f"TensorRT cannot load {what} ({last_error(self._logger)})", _REBUILD
            )

    @property
    def tensors(self) -> list[TensorSpec]:
        """See `Engine`."""
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return [
            TensorSpec(
                name,
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                _dtype(trt, engine.get_tensor_dtype(name)),
                _shape(engine.get_tensor_shape(name)),
            )
            for name in names
        ]

    @property
    def max_batch(self) -> int:
        """See `Engine`."""
        batch = int(self._engine.get_tensor_shape(IMAGE)[0])
        if batch > 0:
            return batch
        _, _, largest = self._engine.get_tensor_profile_shape(IMAGE, 0)
        return int(largest[0])

    def prepare(self, batch: int, addresses: Mapping[str, int]) -> TensorRtExecution:
        """See `Engine`."""
        return TensorRtExecution(self._engine, self._logger, batch, addresses)

    def close(self) -> None:
        """See `Engine`."""
        self._engine = None
        self._runtime = None


class TensorRtExecution:
    """An execution context with its shapes and addresses set; see `Execution`."""

    def __init__(self, engine: Any, logger: Any, batch: int, addresses: Mapping[str, int]) -> None:
        self._logger = logger
        self._context: Any = engine.create_execution_context()
        if self._context is None:
            self._fail("create a context")
        image = (batch, *_shape(engine.get_tensor_shape(IMAGE))[1:])
        if not self._context.set_input_shape(IMAGE, image):
            self._fail(f"take a batch of {batch}")
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                self._fail(f"take an address for {name}")

    def enqueue(self, stream: int) -> None:
        """See `Execution`."""
        if not self._context.execute_async_v3(stream):
            self._fail("execute")

    def close(self) -> None:
        """See `Execution`."""
        self._context = None

    def _fail(self, what: str) -> None:
        raise UnavailableError(
            f"TensorRT failed to {what} ({last_error(self._logger)})",
            "see the daemon's log; restart the service",
        )


def _dtype(trt: Any, dtype: Any) -> str:
    """NumPy's name, or TensorRT's where NumPy has none."""
    named = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.UINT8: "uint8",
        trt.DataType.INT8: "int8",
        trt.DataType.INT32: "int32",
    }
    return named.get(dtype, str(dtype).rpartition(".")[2])


def _shape(dims: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in dims)


def _to_log(severity: str, text: str) -> None:
    level = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}
    log.log(level.get(severity, logging.DEBUG), "TensorRT: %s", text)
