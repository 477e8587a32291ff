"""Training in several processes: started, watched, stopped and, when one fails, ended from here.

Every device has a process of its own (`worker.py`), all in sessions apart from the terminal's, so
that Ctrl-C reaches this process alone, which asks the first worker to stop; the workers agree on
the step. This process trains nothing: it shows progress and survives whatever ends a worker.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from metal_edge.errors import DataError, MetalEdgeError, MissingInputError, OutputError
from metal_edge.models.base import AnomalyModel
from metal_edge.models.checkpoint import save_tensors
from metal_edge.models.registry import NetworkConfig
from metal_edge.training.config import TrainConfig
from metal_edge.training.devices import Hardware
from metal_edge.training.loop import Progress, Stop, TrainingDivergedError

HANDOVER = "handover.safetensors"
MEETING = "meeting"
WAIT_S = 300.0  # for another process, within a step: longer than any step or saving takes
GRACE_S = 5.0  # between a first failure (or the end) and the end of all processes
_POLL_S = 0.2


class Job(BaseModel):
    """What a worker is told; the tensors travel in the same file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkConfig
    training: TrainConfig
    train_images: int
    fingerprint: str
    hardware: Hardware
    wait_s: float


@dataclass(frozen=True, slots=True)
class Watcher:
    """What the processes are to tell and to be told.

    Args:
        on_resume: told the number of finished epochs, if a state file was there.
        on_progress: called after every batch.
        interrupted: asked several times a second.
    """

    on_resume: Callable[[int], None]
    on_progress: Callable[[Progress], None]
    interrupted: Callable[[], bool]


class TrainingProcessError(MetalEdgeError):
    """A training process ended or fell silent; the last saved state is kept."""


_SAME_COMMAND = "the same command goes on from the last saved state"
_ERRORS: dict[str, type[MetalEdgeError]] = {
    kind.__name__: kind
    for kind in (TrainingDivergedError, DataError, MissingInputError, OutputError)
}


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    reports: int  # file descriptor, closed by the worker's end
    log: Path
    unread: bytes = b""
    last: dict[str, Any] = field(default_factory=dict)  # of done, error or crash
    ended: bool = False


def train_in_processes(
    job: Job,
    model: AnomalyModel,
    stored: Tensor,
    state_file: Path,
    watcher: Watcher,
) -> Stop:
    """Trains until the state file holds the end, or the moment of interruption.

    Args:
        job: what to train; `job.hardware.count` processes do.
        model: its weights are where training starts; unchanged.
        stored: what the model stores per image, training images first.
        state_file: where the resumable state lives.
        watcher: told and asked in this process.

    Raises:
        TrainingProcessError: a process died or fell silent.
        MetalEdgeError: what a worker raised: a diverging loss, an unwritable place.
    """
    with TemporaryDirectory(prefix="metal-edge-train-") as name:
        folder = Path(name)
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {"stored": stored}
        save_tensors(folder / HANDOVER, tensors, {"job": job.model_dump(mode="json")})
        workers: list[_Worker] = []
        try:
            for rank in range(job.hardware.count):
                worker = _start(folder, state_file, rank, job.hardware.count)
                workers.append(worker)
            _watch(workers, watcher)
        finally:
            _end(workers)
        return _verdict(workers)


def _start(folder: Path, state_file: Path, rank: int, count: int) -> _Worker:
    threads = str(max(1, torch.get_num_threads() // count))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if sys.platform == "linux":  # one machine: nothing to say to the network
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    log = folder / f"{rank}.log"
    reading, writing = os.pipe()
    # -P: a file in the working directory must not pass for one of our modules
    command = [sys.executable, "-P", "-m", "metal_edge.training.worker"]
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(folder), str(state_file), str(rank), str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(writing,),
                env=environment,
                start_new_session=True,
            )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return _Worker(rank, process, reading, log)


def _watch(workers: list[_Worker], watcher: Watcher) -> None:
    """Returns when all are done, or GRACE_S after the first failed or the state was saved."""
    told, deadline = False, float("inf")
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.reports, selectors.EVENT_READ, worker)
        while not all(w.ended or w.last for w in workers) and time.monotonic() < deadline:
            for key, _ in selector.select(_POLL_S):
                worker = key.data
                for report in _read(worker):
                    _pass_on(worker, report, watcher)
                if worker.ended:
                    selector.unregister(worker.reports)
            if deadline == float("inf") and _is_over(workers):
                deadline = time.monotonic() + GRACE_S
            if not told and watcher.interrupted():
                told = True
                _ask_to_stop(workers[0])


def _is_over(workers: list[_Worker]) -> bool:
    """A worker failed, or the first one, which saves the state, is done."""
    failed = any(
        worker.last.get("kind", "done") != "done" or (worker.ended and not worker.last)
        for worker in workers
    )
    return failed or bool(workers[0].last)


def _read(worker: _Worker) -> list[dict[str, Any]]:
    """The reports that have arrived; notes the worker's end."""
    piece = os.read(worker.reports, 1 << 16)
    worker.ended = not piece
    *lines, worker.unread = (worker.unread + piece).split(b"\n")
    return [json.loads(line) for line in lines]


def _pass_on(worker: _Worker, report: dict[str, Any], watcher: Watcher) -> None:
    kind = report.pop("kind")
    if kind == "progress":
        watcher.on_progress(Progress(**report))
    elif kind == "resumed":
        watcher.on_resume(report["epoch"])
    else:
        worker.last = {"kind": kind, **report}


def _ask_to_stop(first: _Worker) -> None:
    """It stops when its standard input ends."""
    if first.process.stdin is not None:
        first.process.stdin.close()


def _end(workers: list[_Worker]) -> None:
    """Leaves no process behind, whatever state it is in."""
    for worker in workers:
        if worker.ended and not worker.last:  # on its way out: its exit code tells why
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(GRACE_S)
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.wait()
        os.close(worker.reports)
        if worker.process.stdin is not None:
            worker.process.stdin.close()


def _verdict(workers: list[_Worker]) -> Stop:
    """How training ended; the cause of a failure goes before what followed from it."""
    if workers[0].last.get("kind") == "done":
        return Stop(workers[0].last["stop"])
    for worker in workers:
        if worker.last.get("kind") == "error":
            kind = _ERRORS.get(worker.last["type"], MetalEdgeError)
            raise kind(worker.last["what"], worker.last["remedy"])
    for worker in workers:
        if worker.ended and not worker.last:
            raise _died(worker, len(workers))
    for worker in workers:
        if not worker.ended and not worker.last:
            raise TrainingProcessError(
                f"training process {worker.rank + 1} of {len(workers)} stopped answering",
                _SAME_COMMAND,
            )
    crashed = next(worker for worker in workers if worker.last["kind"] == "crash")
    raise RuntimeError(f"in training process {crashed.rank + 1}:\n{crashed.last['trace']}")


def _died(worker: _Worker, count: int) -> TrainingProcessError:
    code = worker.process.returncode
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        remedy = f"if memory was short, use fewer --devices; {_SAME_COMMAND}"
    else:
        said = worker.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        how = f"ended with code {code} ({said[-1] if said else 'without a word'})"
        remedy = _SAME_COMMAND
    return TrainingProcessError(f"training process {worker.rank + 1} of {count} {how}", remedy)
