"""One attention in a process of its own: its plan is built, or is proven and timed.

An illegal address in a plugin leaves a CUDA context in which every later call fails, and a plugin
may crash or hang outright. Whoever compares attentions therefore starts one process for each
step (`tensorrt_children`); what happens in it happens to nobody else.

    python -m metal_edge.export.tensorrt_trial    # a Job as one line of JSON on standard input

On standard output, line by line, [kind, value]: the builder's "note", "phase" and "step" as
`BuildLog` takes them, and at last "done" with what was found, or "error" with its name, what and
remedy. Everything that libraries print goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from metal_edge.bundle import Bundle
from metal_edge.errors import MetalEdgeError
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions, build_plan
from metal_edge.files import write_bytes
from metal_edge.runtime.cuda_memory import Cuda, open_cuda
from metal_edge.runtime.load import check_golden, read_golden_image
from metal_edge.runtime.plugin import load_plugin
from metal_edge.runtime.tensorrt_engine import TensorRtEngine, import_tensorrt
from metal_edge.runtime.tensorrt_runner import TensorRtRunner
from metal_edge.runtime.timing import take_turns

Emit = Callable[[str, Any], None]
_PR_SET_PDEATHSIG = 1


class Job(BaseModel):
    """What a process is started for.

    Attributes:
        step: "build" writes `plan` from `model`; "prove" runs the golden images on `plan`, then
            times `frames` frames.
        name: of the attention, for messages.
        plugin: whether the graph needs our plugin.
        model: ONNX file.
        plan: the plan's file.
        bundle: whose golden images decide what is correct.
        workspace_mib, timing_cache: see `BuildOptions`.
        frames: how many are timed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Literal["build", "prove"]
    name: str
    plugin: bool
    model: Path
    plan: Path
    bundle: Path
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    frames: int = Field(default=1, ge=1)


def serve(
    job: Job, emit: Emit, trt: Any, open_gpu: Callable[[], Cuda], seconds: Callable[[], float]
) -> None:
    """Does the job and tells what came of it; of the errors, those that a user can act on."""
    try:
        if job.step == "build":
            found = _build(job, emit, trt, open_gpu)
        else:
            found = _prove(job, trt, open_gpu, seconds)
    except MetalEdgeError as error:
        emit("error", [type(error).__name__, error.what, error.remedy])
    else:
        emit("done", found)


def _build(job: Job, emit: Emit, trt: Any, open_gpu: Callable[[], Cuda]) -> dict[str, Any]:
    options = BuildOptions(job.workspace_mib, job.timing_cache)
    with closing(open_gpu()) as cuda, cuda.current():
        if job.plugin:
            load_plugin(trt)
        content = build_plan(trt, job.model, options, _Relay(emit))
    write_bytes(job.plan, content)
    return {"bytes": len(content)}


def _prove(
    job: Job, trt: Any, open_gpu: Callable[[], Cuda], seconds: Callable[[], float]
) -> dict[str, Any]:
    bundle = Bundle.open(job.bundle)
    with _runner(job, trt, open_gpu) as runner:
        golden = check_golden(bundle, runner)
        frame = read_golden_image(bundle, bundle.golden.images[0].file)[None]
        times = take_turns([partial(runner.run, frame)], job.frames, seconds)
    return {
        "golden_images": golden.images,
        "worst_difference": golden.worst_difference,
        "tolerance": golden.tolerance,
        "ms": times[:, 0].tolist(),
    }


def _runner(job: Job, trt: Any, open_gpu: Callable[[], Cuda]) -> TensorRtRunner:
    what = f"the plan with attention {job.name}"
    with ExitStack() as undo:
        cuda = open_gpu()
        undo.callback(cuda.close)
        with cuda.current():
            if job.plugin:
                load_plugin(trt)
            engine = TensorRtEngine(trt, job.plan.read_bytes(), what)
        undo.pop_all()  # from here on the runner closes both
    return TensorRtRunner(engine, cuda, what)


class _Relay(BuildLog):
    """The log of a build whose reader is another process, which also decides when to stop it."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(lambda *_: None)
        self._emit = emit

    def note(self, severity: str, text: str) -> None:
        self._emit("note", [severity, text])

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        self._emit("phase", [name, parent, steps])

    def step(self, name: str, step: int) -> bool:
        self._emit("step", [name, step])
        return True


def main(
    trt: Callable[[], Any] = import_tensorrt, open_gpu: Callable[[], Cuda] = open_cuda
) -> None:
    """Reads the job from standard input and does it; the process ends here."""
    _end_with_parent()
    emit = _emitter()
    job = Job.model_validate_json(sys.stdin.readline())
    try:
        package = trt()
    except MetalEdgeError as error:
        emit("error", [type(error).__name__, error.what, error.remedy])
    else:
        serve(job, emit, package, open_gpu, time.perf_counter)
    # Libraries that crash while they are unloaded have nothing more to say.
    os._exit(0)


def _end_with_parent() -> None:
    """A build of minutes that nobody waits for must not go on."""
    ctypes.CDLL(None)["prctl"](_PR_SET_PDEATHSIG, signal.SIGKILL)


def _emitter() -> Emit:
    """Keeps standard output for the answers: what else is written there goes to standard error."""
    sys.stdout.flush()
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(kind: str, value: Any) -> None:
        line = json.dumps([kind, value]).encode("ascii") + b"\n"
        try:
            while line:
                line = line[os.write(answers, line) :]
        except OSError:  # nobody listens any more, and TensorRT must not see an exception
            os._exit(1)

    return emit


if __name__ == "__main__":
    main()
