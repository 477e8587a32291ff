"""A machine with a GPU and TensorRT, both stand-ins, and a plan cache of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from metal_edge.export import engine, tensorrt_bundle
from metal_edge.runtime import tensorrt_load
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import FakeTensorRt


class Machine:
    """Attributes: trt; plans (the cache's folder); cudas (every access to the GPU so far)."""

    def __init__(self, plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans = plans
        self.cudas: list[FakeCuda] = []
        self.gpu = FakeCuda.gpu
        self.trt = FakeTensorRt(lambda: self.cudas[-1])
        monkeypatch.setenv("METAL_EDGE_PLANS", str(plans))
        for module in (tensorrt_load, engine):
            monkeypatch.setattr(module, "missing_for_tensorrt", lambda: None)
        for module in (tensorrt_load, tensorrt_bundle):
            monkeypatch.setattr(module, "import_tensorrt", lambda: self.trt)
            monkeypatch.setattr(module, "open_cuda", self._open)

    def _open(self) -> FakeCuda:
        cuda = FakeCuda()
        cuda.gpu = self.gpu
        self.cudas.append(cuda)
        return cuda

    def check_released(self) -> None:
        """Every access was given back, once, with nothing left on the device."""
        assert self.cudas
        assert all(cuda.closed == 1 and not cuda.live for cuda in self.cudas)
