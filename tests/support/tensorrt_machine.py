"""A machine with a GPU and TensorRT, both stand-ins, and a plan cache of its own."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metal_edge.cli import resident
from metal_edge.export import engine, tensorrt_bundle, tensorrt_inspect
from metal_edge.export.tensorrt_builder import BuildLog
from metal_edge.export.tensorrt_children import Conversation, run_job
from metal_edge.export.tensorrt_trial import Job, serve
from metal_edge.runtime import plugin, tensorrt_load
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import LIBRARY_MARK, FakeTensorRt


class Machine:
    """Attributes: trt; plans (the cache's folder); cudas (every access to the GPU so far).

    What `auto` does in processes of its own is done in this one, word for word as it would be
    said, unless `start_processes` was called.
    """

    PLUGIN = f"{LIBRARY_MARK} MaskedAttention 1 MaskedAttentionBlock 1"

    def __init__(self, plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans = plans
        self.library = plans.with_name("libmetal_edge_plugin.so")
        monkeypatch.delenv(plugin.VARIABLE, raising=False)
        monkeypatch.setattr(plugin, "PLACES", (self.library,))
        self._monkeypatch = monkeypatch
        self.restart()
        self.cudas: list[FakeCuda] = []
        self.gpu = FakeCuda.gpu
        self.trt = FakeTensorRt(lambda: self.cudas[-1])
        monkeypatch.setenv("METAL_EDGE_PLANS", str(plans))
        for module in (tensorrt_load, engine):
            monkeypatch.setattr(module, "missing_for_tensorrt", lambda: None)
        for module in (tensorrt_load, tensorrt_bundle, tensorrt_inspect):
            monkeypatch.setattr(module, "import_tensorrt", lambda: self.trt)
        for module in (tensorrt_load, tensorrt_bundle, tensorrt_inspect, resident):
            monkeypatch.setattr(module, "open_cuda", self._open)
        monkeypatch.setattr(tensorrt_bundle, "run_job", self._job_in_this_process)

    def install_plugin(self, content: str = PLUGIN) -> None:
        """Puts a plugin library where it is looked for."""
        self.library.write_text(content, encoding="utf-8")

    def restart(self) -> None:
        """A process that has loaded no plugin yet."""
        self._monkeypatch.setattr(plugin, "_loaded", [])
        if hasattr(self, "trt"):
            self.trt.registry.creators.clear()

    def start_processes(self, fault: str) -> None:
        """From now on jobs have real processes, with stand-ins; see `trial_child` for faults."""
        self._monkeypatch.setenv(plugin.VARIABLE, str(self.library))
        self._monkeypatch.setenv("TRIAL_FAULT", fault)
        self._monkeypatch.setenv("OMP_NUM_THREADS", "1")
        folder = str(Path(__file__).parents[1])
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._monkeypatch.setenv("PYTHONPATH", path)
        command = (sys.executable, "-m", "support.trial_child")
        self._monkeypatch.setattr(tensorrt_bundle, "run_job", partial(run_job, command=command))

    def _job_in_this_process(self, job: Job, log: BuildLog) -> dict[str, Any]:
        talk = Conversation(log)

        def emit(kind: str, value: Any) -> None:
            talk.hear(json.dumps([kind, value]).encode())

        job = Job.model_validate_json(job.model_dump_json())
        serve(job, emit, self.trt, self._open, lambda: self.trt.elapsed)
        answer = talk.answer()
        assert answer is not None
        return answer

    def _open(self) -> FakeCuda:
        cuda = FakeCuda()
        cuda.gpu, cuda.device = self.gpu, self.cudas
        self.cudas.append(cuda)
        return cuda

    def check_released(self) -> None:
        """Every access was given back, once, with nothing left on the device."""
        assert self.cudas
        assert all(cuda.closed == 1 and not cuda.live for cuda in self.cudas)
