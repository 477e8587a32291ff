"""The process that `--attention auto` starts (`metal_edge.export.tensorrt_trial`), on TensorRT-RTX.

    python -m tools.tensorrt.rtx_trial_probe    # a job on standard input, as for the real one

Only its build step: nothing runs without a GPU, so there is none to open.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from metal_edge.export.tensorrt_trial import main
from metal_edge.runtime.cuda_memory import Cuda
from tools.tensorrt.rtx_plan_probe import for_sm86


class _NoGpu:
    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        """Nothing is open."""


def _open() -> Cuda:
    nothing: Any = _NoGpu()
    return cast(Cuda, nothing)


if __name__ == "__main__":
    main(for_sm86, _open)
