"""Networks timed on one pinned thread, taking turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from metal_edge.models.base import AnomalyModel
from metal_edge.models.scoring import AnomalyScorer
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.onnxruntime_runner import DISABLED_OPTIMIZERS
from metal_edge.runtime.timing import take_turns
from tools.bench.case import Case

EAGER = "eager"


def bare(precision: str) -> str:
    """Name of a bundle's graph in a session without our runner."""
    return f"bare {precision}"


@contextmanager
def one_pinned_thread() -> Iterator[None]:
    """Keeps this process on the first core it may use, and PyTorch to one thread."""
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(allowed)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, allowed)


def time_networks(
    case: Case,
    model: AnomalyModel,
    seconds: Callable[[], float],
    *,
    turns: int,
    on_turn: Callable[[int], None],
) -> Mapping[str, NDArray[np.float64]]:
    """Milliseconds per turn of every contender, one frame each.

    Args:
        model: the checkpoint that the bundles were built from.
        seconds: a monotonic clock.

    Returns:
        By name: EAGER, "fp32" and "int8" (`Runner.run`), `bare` of both.
    """
    frame = case.frame()
    with one_pinned_thread(), ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {EAGER: _eager(model, frame)}
        for name, bundle in case.bundles.items():
            runner = stack.enter_context(load_runner(bundle, threads=1))
            calls[name] = _running(runner.run, frame)
            calls[bare(name)] = _bare(bundle.model_path, frame)
        times = take_turns(list(calls.values()), turns, seconds, on_turn)
    return dict(zip(calls, times.T, strict=True))


def time_runners(
    runners: Mapping[str, Runner],
    frame: NDArray[np.uint8],
    seconds: Callable[[], float],
    *,
    turns: int,
    on_turn: Callable[[int], None],
) -> Mapping[str, NDArray[np.float64]]:
    """Milliseconds per turn of every runner on the same frame, by name.

    Pin the thread before the runners are made: some start threads of their own.
    """
    calls = [_running(runner.run, frame) for runner in runners.values()]
    times = take_turns(calls, turns, seconds, on_turn)
    return dict(zip(runners, times.T, strict=True))


def _running(
    run: Callable[[NDArray[np.uint8]], object], frame: NDArray[np.uint8]
) -> Callable[[], object]:
    return lambda: run(frame)


def _bare(path: Path, frame: NDArray[np.uint8]) -> Callable[[], object]:
    """ONNX Runtime with the runner's options, called as its own documentation shows."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=DISABLED_OPTIMIZERS,
    )
    name = session.get_inputs()[0].name
    return lambda: session.run(["anomaly_map", "score"], {name: frame})


def _eager(model: AnomalyModel, frame: NDArray[np.uint8]) -> Callable[[], object]:
    scorer = AnomalyScorer(model).eval()

    def call() -> object:
        with torch.inference_mode():
            return [result.numpy() for result in scorer(torch.from_numpy(frame))]

    return call


def has_vnni(cpuinfo: str) -> bool:
    """Whether /proc/cpuinfo lists an 8-bit dot product: x86's VNNI or Arm's equivalent."""
    flags = set(cpuinfo.split())
    return bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"})
