"""A machine with a GPU and TensorRT, both stand-ins, and a plan cache of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from metal_edge.export import engine, tensorrt_attention, tensorrt_bundle
from metal_edge.runtime import plugin, tensorrt_load
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import LIBRARY_MARK, FakeTensorRt


class Machine:
    """Attributes: trt; plans (the cache's folder); cudas (every access to the GPU so far)."""

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
        for module in (tensorrt_load, tensorrt_bundle):
            monkeypatch.setattr(module, "import_tensorrt", lambda: self.trt)
        for module in (tensorrt_load, tensorrt_bundle, tensorrt_attention):
            monkeypatch.setattr(module, "open_cuda", self._open)

    def install_plugin(self, content: str = PLUGIN) -> None:
        """Puts a plugin library where it is looked for."""
        self.library.write_text(content, encoding="utf-8")

    def restart(self) -> None:
        """A process that has loaded no plugin yet."""
        self._monkeypatch.setattr(plugin, "_loaded", [])
        if hasattr(self, "trt"):
            self.trt.registry.creators.clear()

    def _open(self) -> FakeCuda:
        cuda = FakeCuda()
        cuda.gpu = self.gpu
        self.cudas.append(cuda)
        return cuda

    def check_released(self) -> None:
        """Every access was given back, once, with nothing left on the device."""
        assert self.cudas
        assert all(cuda.closed == 1 and not cuda.live for cuda in self.cudas)
