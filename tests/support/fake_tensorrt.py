"""TensorRT's Python interface as far as metal_edge uses it, with ONNX Runtime inside.

A plan is the ONNX file behind a mark, "built" for one version; an execution computes on the
memory of a `FakeCuda` at the addresses that were set. What is not used is not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from metal_edge.export.masked_attention_onnx import REFERENCE_OPS
from metal_edge.export.operator_node import DOMAIN
from support.fake_cuda import FakeCuda

MARK = b"FAKE PLAN "
# A plugin library is a file of this and the names and versions of its creators.
LIBRARY_MARK = "FAKE PLUGIN"
Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
DataType = Enum("DataType", "FLOAT HALF UINT8 INT8 INT32 INT64")
_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.UINT8: DataType.UINT8,
    onnx.TensorProto.FLOAT16: DataType.HALF,
}


class Flag(IntEnum):
    STRONGLY_TYPED = 1


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self.initialised = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.initialised = True


class FakeTensorRt:
    """The package. One instance per test.

    Attributes:
        version: what `__version__` says.
        bias: added to every score at run time: a miscompiled plan.
        refuses: the build fails with these words.
        during_build: called before the last step of a build.
        builds: what was asked of the builder, build by build.
        plugin_bias, plugin_refuses: likewise, of networks with our plugin only.
        costs: seconds of one execution, without and with our plugin; `elapsed` adds them up.
        registry: of plugins.
    """

    ILogger = ILogger
    IProgressMonitor = IProgressMonitor
    DataType = DataType
    NetworkDefinitionCreationFlag = Flag
    TensorIOMode = Enum("TensorIOMode", "INPUT OUTPUT")
    ProfilingVerbosity = Enum("ProfilingVerbosity", "DETAILED")
    LayerInformationFormat = Enum("LayerInformationFormat", "ONELINE JSON")
    BuilderFlag = Enum("BuilderFlag", "TF32")
    MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE")

    def __init__(self, cuda: Callable[[], FakeCuda], version: str = "10.3.0") -> None:
        self.cuda, self.__version__ = cuda, version
        self.bias = 0.0
        self.refuses = ""
        self.during_build: Callable[[], object] = lambda: None
        self.builds: list[dict[str, Any]] = []
        self.plugin_bias, self.plugin_refuses = 0.0, ""
        self.costs, self.elapsed = (1.0, 1.0), 0.0
        self.registry = Registry()

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def Builder(self, logger: ILogger) -> Builder:  # noqa: N802 - TensorRT's name
        return Builder(self, logger)

    def OnnxParser(self, network: Network, logger: ILogger) -> Parser:  # noqa: N802
        return Parser(network, logger, self.registry)

    def Runtime(self, logger: ILogger) -> Runtime:  # noqa: N802
        return Runtime(self, logger)


class Registry:
    """Attributes: creators (name, version, namespace); loaded (paths, in order)."""

    def __init__(self) -> None:
        self.creators: set[tuple[str, str, str]] = set()
        self.loaded: list[str] = []

    def load_library(self, path: str) -> object | None:
        self.loaded.append(path)
        text = Path(path).read_text(encoding="utf-8")
        if not text.startswith(LIBRARY_MARK):
            return None
        words = text.removeprefix(LIBRARY_MARK).split()
        found = {(n, v, "") for n, v in zip(words[::2], words[1::2], strict=True)}
        self.creators |= found
        return found

    def deregister_library(self, handle: Any) -> None:
        self.creators -= handle

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        return object() if (name, version, namespace) in self.creators else None

    def lacks(self, model: onnx.ModelProto) -> str:
        """A node of ours that nobody creates."""
        return next(
            (
                node.op_type
                for node in model.graph.node
                if node.domain == DOMAIN and self.get_creator(node.op_type, "1", "") is None
            ),
            "",
        )


class Network:
    def __init__(self) -> None:
        self.model = onnx.ModelProto()

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    def get_input(self, index: int) -> Any:
        return _tensor(self.model.graph.input[index], True)

    def get_output(self, index: int) -> Any:
        return _tensor(self.model.graph.output[index], False)


class Parser:
    """Refuses uint8 arithmetic, as TensorRT does; a shape is none."""

    def __init__(self, network: Network, logger: ILogger, registry: Registry) -> None:
        assert logger.initialised
        self._network, self._registry = network, registry
        self._errors: list[Any] = []

    def parse(self, content: bytes) -> bool:
        self._network.model = model = onnx.load_from_string(content)
        for index, node in enumerate(model.graph.node):
            if "image" in node.input and node.op_type not in {"Cast", "Shape"}:
                self._errors.append(_problem(index, node))
        assert not self._registry.lacks(model), "parsed before its plugin was loaded"
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


class Config:
    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.progress_monitor: Any = None
        self._cache: Any = None

    @property
    def profiling_verbosity(self) -> Any:
        return self.asked.get("verbosity")

    @profiling_verbosity.setter
    def profiling_verbosity(self, value: Any) -> None:
        self.asked["verbosity"] = value.name

    def clear_flag(self, flag: Any) -> None:
        self.asked.setdefault("cleared", []).append(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.asked["workspace"] = size

    def add_optimization_profile(self, profile: Profile) -> int:
        self.asked["profile"] = profile.shapes
        return 0

    def create_timing_cache(self, content: bytes) -> Any:
        self.asked.setdefault("timings", []).append(content)
        return SimpleNamespace(content=content, serialize=lambda: b"timed " + content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if b"foreign" in cache.content:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, name: str, smallest: Any, tuned: Any, largest: Any) -> None:
        self.shapes[name] = (smallest, tuned, largest)


class Builder:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self._asked: dict[str, Any] = {}

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << Flag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> Config:
        return Config(self._asked)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        self._trt.builds.append(self._asked)
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Tactics", "Building engine", 9)
        self._logger.log(Severity.VERBOSE, "chatter")
        self._logger.log(Severity.INFO, "building")
        wanted = monitor.step_complete("Building engine", 0)
        self._trt.during_build()
        wanted = wanted and monitor.step_complete("Building engine", 1)
        monitor.phase_finish("Building engine")
        refuses = self._trt.refuses or (_is_ours(network.model) and self._trt.plugin_refuses)
        if refuses or not wanted:
            self._logger.log(Severity.ERROR, refuses or "cancelled")
            return None
        largest = self._asked["profile"]["image"][2][0] if "profile" in self._asked else 1
        return MARK + f"{largest} ".encode() + network.model.SerializeToString()


class Runtime:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if not plan.startswith(MARK):
            self._logger.log(Severity.ERROR, "Magic tag does not match")
            return None
        largest, _, model = plan.removeprefix(MARK).partition(b" ")
        missing = self._trt.registry.lacks(onnx.load_from_string(model))
        if missing:
            self._logger.log(Severity.ERROR, f"Cannot find plugin: {missing}, version: 1")
            return None
        return Engine(self._trt, int(largest), model)


class Engine:
    def __init__(self, trt: FakeTensorRt, largest: int, model: bytes) -> None:
        self.trt, self.cuda = trt, trt.cuda()
        loaded = onnx.load_from_string(model)
        graph, self.ours = loaded.graph, _is_ours(loaded)
        self._tensors = {
            t.name: t
            for t in (
                *(_tensor(i, True) for i in graph.input),
                *(_tensor(o, False) for o in graph.output),
            )
        }
        self._largest, self._graph = largest, graph
        self.session: Any = (
            ReferenceEvaluator(loaded, new_ops=REFERENCE_OPS) if self.ours else _session(model)
        )

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self.trt.TensorIOMode
        return mode.INPUT if self._tensors[name].is_network_input else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._tensors[name].shape
        return shape

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        rest = self._tensors[name].shape[1:]
        return [(1, *rest), (1, *rest), (self._largest, *rest)]

    def create_engine_inspector(self) -> Any:
        def information(form: Any) -> str:
            assert form is self.trt.LayerInformationFormat.JSON
            return json.dumps({"Layers": [node.name for node in self._graph.node]})

        return SimpleNamespace(get_engine_information=information)

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        self._shape = shape
        return shape[0] <= self._engine.get_tensor_profile_shape(name, 0)[2][0]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._engine.cuda.queue(stream, self._execute)
        return True

    def _execute(self) -> None:
        cuda, names = self._engine.cuda, ("anomaly_map", "score")
        pixels = cuda.memory(self._addresses["image"], int(np.prod(self._shape)))
        maps, scores = self._engine.session.run(names, {"image": pixels.reshape(self._shape)})
        trt, ours = self._engine.trt, self._engine.ours
        trt.elapsed += trt.costs[ours]
        scores = scores + np.float32(trt.bias + ours * trt.plugin_bias)
        for name, values in zip(names, (maps, scores), strict=True):
            cuda.memory(self._addresses[name], values.nbytes)[:] = values.view(np.uint8).ravel()


def _session(model: bytes) -> ort.InferenceSession:
    """As our runner has it: with all optimisers, FP16 scales would underflow."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )


def _is_ours(model: onnx.ModelProto) -> bool:
    return any(node.domain == DOMAIN for node in model.graph.node)


def _tensor(value: onnx.ValueInfoProto, is_input: bool) -> Any:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return SimpleNamespace(
        name=value.name, dtype=_TYPES[kind.elem_type], shape=shape, is_network_input=is_input
    )


def _problem(index: int, node: onnx.NodeProto) -> Any:
    return SimpleNamespace(
        node=lambda: index,
        node_name=lambda: node.name,
        node_operator=lambda: node.op_type,
        desc=lambda: "first input has type UInt8\nbut must have type Float",
    )
