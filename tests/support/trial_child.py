"""The process of `tensorrt_trial` with stand-ins for TensorRT and the GPU, and a fault of choice.

TRIAL_FAULT is "attention/step/fault" or empty. A fault happens when that attention's plan is
built, or while its golden images run on the GPU:

    SIGSEGV, SIGKILL, SIGABRT   the process dies of it; SIGSEGV by a real wild read
    Ctrl-C                      somebody interrupts the command, and the process never answers
    sticky                      an illegal address: from then on every call of CUDA fails
    exit                        a library ends the process, after printing on standard output
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from metal_edge.errors import UnavailableError
from metal_edge.export import tensorrt_trial
from metal_edge.export.tensorrt_trial import Job
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import FakeTensorRt


class Poisoned(FakeCuda):
    """After an illegal address nothing of a CUDA context works any more."""

    def _note(self, *words: Any, **more: Any) -> None:
        raise UnavailableError("CUDA failed in cuStreamSynchronize (an illegal address, 700)")

    def close(self) -> None:
        """The driver takes everything back when the process ends."""


def happen(fault: str, cuda: FakeCuda) -> None:
    if fault == "SIGSEGV":
        ctypes.string_at(16)
    elif fault.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[fault])
    elif fault == "Ctrl-C":
        os.kill(os.getppid(), signal.SIGINT)
        threading.Event().wait()
    elif fault == "exit":
        os.write(1, b"CUDA error 700, giving up\n")
        os._exit(3)
    elif fault == "sticky":
        cuda.__class__ = Poisoned


def running() -> list[int]:
    """Processes of this kind whose parent is this process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it ended while we looked
            words = status.with_name("cmdline").read_bytes()
            if (
                b"support.trial_child" in words
                and f"\nPPid:\t{os.getpid()}\n" in status.read_text()
            ):
                found.append(int(status.parent.name))
    return found


def main() -> None:
    fault = os.environ.get("TRIAL_FAULT", "")
    cuda = FakeCuda()
    trt = FakeTensorRt(lambda: cuda)
    attention, _, rest = fault.partition("/")
    step, _, what = rest.partition("/")
    serve = tensorrt_trial.serve

    def spoilt(job: Job, *others: Any) -> None:
        if (job.name, job.step) == (attention, step) and step == "build":
            trt.during_build = lambda: happen(what, cuda)
        elif (job.name, job.step) == (attention, step):
            wait = cuda.synchronize

            def synchronize(stream: int) -> None:
                happen(what, cuda)
                wait(stream)

            cuda.synchronize = synchronize  # type: ignore[method-assign]
        serve(job, *others)

    tensorrt_trial.serve = spoilt
    tensorrt_trial.main(lambda: trt, lambda: cuda)


if __name__ == "__main__":
    sys.exit(main())
