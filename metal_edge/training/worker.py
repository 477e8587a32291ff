"""One of several training processes; started by `processes.py`, never by hand.

`python -m metal_edge.training.worker FOLDER STATE RANK FD`: the job lies in FOLDER, STATE is the
state file, reports go to file descriptor FD as JSON lines, and the end of standard input means:
stop.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metal_edge.errors import ExitCode, MetalEdgeError
from metal_edge.models.checkpoint import load_tensors
from metal_edge.models.registry import build_model
from metal_edge.training.devices import join_processes
from metal_edge.training.loop import Trainer
from metal_edge.training.processes import HANDOVER, MEETING, Job

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
Send = Callable[[dict[str, Any]], None]


def main(arguments: list[str]) -> int:
    """Works, and reports how it ended; the exit code says whether all went well."""
    folder, state_file = map(Path, arguments[:2])
    rank, descriptor = map(int, arguments[2:])
    _follow_parent()
    with os.fdopen(descriptor, "w", encoding="utf-8") as reports:

        def send(report: dict[str, Any]) -> None:
            reports.write(json.dumps(report) + "\n")
            reports.flush()

        try:
            _work(folder, state_file, rank, send)
        except MetalEdgeError as error:
            send(_described(error))
            return ExitCode.FAILURE
        except Exception:  # noqa: BLE001 - the parent raises it again
            send({"kind": "crash", "trace": traceback.format_exc()})
            return ExitCode.SOFTWARE
    return ExitCode.OK


def _work(folder: Path, state_file: Path, rank: int, send: Send) -> None:
    tensors, meta = load_tensors(folder / HANDOVER)
    job = Job.model_validate(meta["job"])
    compute = join_processes(job.hardware, rank, folder / MEETING, job.wait_s)
    if compute.first:  # all have it open: were this run killed, it would fill the disk for good
        (folder / HANDOVER).unlink()
    model = build_model(job.network)
    stored = tensors.pop("stored")
    model.load_state_dict({name.removeprefix("model."): v for name, v in tensors.items()})
    trainer = Trainer(
        model,
        stored[: job.train_images],
        stored[job.train_images :],
        job.training,
        state_file=state_file,
        fingerprint=job.fingerprint,
        seconds=time.monotonic,
        compute=compute,
    )
    if trainer.resume() and compute.first:
        send({"kind": "resumed", "epoch": trainer.position.epoch})
    stop = trainer.run(
        on_progress=lambda progress: send({"kind": "progress", **asdict(progress)}),
        interrupted=_asked_to_stop,
    )
    trainer.save()  # the parent goes on from there
    send({"kind": "done", "stop": stop.value})
    torch.distributed.destroy_process_group()


def _asked_to_stop() -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable)


def _follow_parent() -> None:
    """Only the parent decides when this ends, also a parent that was killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _described(error: MetalEdgeError) -> dict[str, Any]:
    return {
        "kind": "error",
        "type": type(error).__name__,
        "what": error.what,
        "remedy": error.remedy,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
