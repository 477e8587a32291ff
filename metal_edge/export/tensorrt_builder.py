"""ONNX -> TensorRT plan, on the machine that will run it.

The network is strongly typed: precision is what the ONNX file says (FP16 casts, Q/DQ), and no
flag of the builder changes it. That is the one way which TensorRT 10.3 and 11.4 both know; 11
removed the others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metal_edge.errors import DataError, OutputError, UnavailableError
from metal_edge.files import write_bytes
from metal_edge.runtime.plan_cache import MAX_BATCH
from metal_edge.runtime.tensorrt_engine import created, describe_tensors, last_error, make_logger
from metal_edge.runtime.tensorrt_runner import IMAGE, check_tensors

Report = Callable[[str, int, int], None]
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build.

    Attributes:
        workspace_mib: largest scratch memory of one layer, in MiB; None leaves it to TensorRT,
            which takes what the GPU has.
        timing_cache: file with measured kernel times, read and written; None for none. With it a
            second build takes a fraction of the time and chooses the same kernels.
    """

    workspace_mib: int | None = None
    timing_cache: Path | None = None


class BuildLog:
    """The builder's words and its progress, and the wish to stop it.

    TensorRT calls this from C++ that no exception may cross: an exception of `report` stops the
    build and is raised by `finish`. For the same reason Ctrl-C must arrive as a flag.

    Args:
        report: called with a phase's name, the steps done and their number.
        stop: whether the build shall stop; asked after every step.
    """

    def __init__(self, report: Report, stop: Callable[[], bool] = lambda: False) -> None:
        self._report, self._stop = report, stop
        self._lines: list[str] = []
        self._steps: dict[str, int] = {}  # phases of the outermost level
        self._failure: Exception | None = None

    @property
    def text(self) -> str:
        """Everything so far."""
        return "".join(f"{line}\n" for line in self._lines)

    def note(self, severity: str, text: str) -> None:
        """A message of TensorRT."""
        self._lines.append(f"{severity} {text}")

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        if not parent:
            self._steps[name] = steps
            self._tell(name, 0)

    def step(self, name: str, step: int) -> bool:
        """A step is done; False asks TensorRT to stop."""
        if name in self._steps:
            self._tell(name, step + 1)
        return not self.stopped

    @property
    def stopped(self) -> bool:
        """Whether the build shall end: somebody wishes so, or `report` failed."""
        return self._failure is not None or self._stop()

    def finish(self) -> None:
        """Raises what the build could not: a failure of `report`, or KeyboardInterrupt."""
        if self._failure is not None:
            raise self._failure
        if self._stop():
            raise KeyboardInterrupt

    def _tell(self, name: str, done: int) -> None:
        try:
            self._report(name, done, self._steps[name])
        except Exception as error:  # noqa: BLE001 - raised by finish
            self._failure = self._failure or error


def build_plan(trt: Any, model: Path, options: BuildOptions, log: BuildLog) -> bytes:
    """Builds a plan for the current GPU.

    Args:
        trt: the tensorrt package.
        model: ONNX file with a free batch dimension, or batch 1.
        options: see `BuildOptions`.
        log: receives what TensorRT says, also when the build fails.

    Raises:
        DataError: TensorRT cannot parse the file; its own words, with the node.
        BundleError: the network's inputs and outputs are not ours.
        UnavailableError: TensorRT cannot build it here, in its own words, or the timing cache
            cannot be read.
        KeyboardInterrupt: the log's `stop` said so.
    """
    logger = make_logger(trt, log.note)
    builder = created(logger, "a builder", lambda: trt.Builder(logger))
    network = _parse(trt, builder, model, logger)
    config = created(logger, "a builder's configuration", builder.create_builder_config)
    # Layer names and precisions stay in the plan, for its inspector; kernels are the same.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # FP32 in the file means FP32: TF32 would round its products' factors to 10 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace_mib * _MIB)
    _add_profile(builder, network, config)
    config.progress_monitor = monitor = _make_monitor(trt, log)
    _load_timings(config, options.timing_cache, log)
    serialized = builder.build_serialized_network(network, config)
    del monitor  # the config does not hold it
    log.finish()
    if serialized is None:
        raise UnavailableError(
            f"TensorRT cannot build {model} ({last_error(logger)})",
            "see the build's log; give more memory with --workspace, or another --precision",
        )
    _save_timings(config, options.timing_cache, log)
    return bytes(serialized)


def _parse(trt: Any, builder: Any, model: Path, logger: Any) -> Any:
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = created(logger, "a network", lambda: builder.create_network(1 << int(flag)))
    parser = created(logger, "a parser", lambda: trt.OnnxParser(network, logger))
    if not parser.parse(model.read_bytes()):
        problems = [_problem(parser.get_error(i)) for i in range(parser.num_errors)]
        raise DataError(
            f"TensorRT cannot parse {model}: {'; '.join(problems) or last_error(logger)}",
            "export and build it again with this version; if it stays, report it with the file",
        )
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    check_tensors(describe_tensors(trt, [*inputs, *outputs]), str(model))
    return network


def _problem(error: Any) -> str:
    """One parser error: which node, then TensorRT's words."""
    words = " ".join(str(error.desc()).split())
    return f"node {error.node()} {error.node_name()} ({error.node_operator()}): {words}"


def _add_profile(builder: Any, network: Any, config: Any) -> None:
    """A free batch gets the range 1 to MAX_BATCH, tuned for the line's 1."""
    image = next(t for t in map(network.get_input, range(network.num_inputs)) if t.name == IMAGE)
    batch, *rest = (int(size) for size in image.shape)
    if batch > 0:
        return
    profile = builder.create_optimization_profile()
    one, most = (1, *rest), (MAX_BATCH, *rest)
    profile.set_shape(IMAGE, one, one, most)  # smallest, tuned for, largest
    config.add_optimization_profile(profile)


def _make_monitor(trt: Any, log: BuildLog) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the package is untyped
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            log.phase(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return log.step(name, step)

        def phase_finish(self, name: str) -> None:
            """The last step has said so."""

    return Monitor()


def _load_timings(config: Any, file: Path | None, log: BuildLog) -> None:
    if file is None:
        return
    content = b""
    try:
        with suppress(FileNotFoundError):
            content = file.read_bytes()
    except OSError as error:
        raise UnavailableError(
            f"cannot read the timing cache {file} ({error.strerror})",
            "name a file of your own with --timing-cache",
        ) from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        log.note("WARNING", f"{file} is of another GPU or version: measuring anew")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: Any, file: Path | None, log: BuildLog) -> None:
    """The plan is whole: minutes of building are not thrown away for want of this file."""
    if file is None:
        return
    try:
        write_bytes(file, bytes(config.get_timing_cache().serialize()))
    except OutputError as error:
        log.note("WARNING", f"the timing cache is not kept: {error.what}")
