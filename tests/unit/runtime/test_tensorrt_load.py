"""Without a GPU or TensorRT: what is missing is said, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import FakeTensorRt
from support.tiny_bundle import build_bundle

from metal_edge.bundle import Bundle, write_manifest
from metal_edge.errors import UnavailableError
from metal_edge.export.engine import check_attention, choose_backend
from metal_edge.runtime import plugin, tensorrt_load
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.tensorrt_engine import TensorRtEngine, import_tensorrt
from metal_edge.runtime.tensorrt_load import missing_for_tensorrt


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_load, "_GPU_NODES", ("/nonexistent/nvidia0",))


@pytest.fixture
def bare_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and none of the packages."""
    monkeypatch.setattr(tensorrt_load, "_GPU_NODES", ("/dev/null",))
    for name in ("tensorrt", "pycuda", "cuda"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu() -> None:
    assert missing_for_tensorrt() == "no NVIDIA GPU found"
    assert choose_backend("auto").backend == "onnxruntime"
    with pytest.raises(UnavailableError, match=r"no NVIDIA GPU.*--backend onnxruntime"):
        choose_backend("tensorrt")


@pytest.mark.usefixtures("bare_gpu")
def test_with_a_gpu_but_no_tensorrt() -> None:
    assert missing_for_tensorrt() == "the tensorrt Python package is not installed"
    with pytest.raises(UnavailableError, match="tensorrt"):
        import_tensorrt()


@pytest.mark.parametrize("wanted", ["auto", "tensorrt"])
def test_with_everything(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr("metal_edge.export.engine.missing_for_tensorrt", lambda: None)
    assert choose_backend(wanted).backend == "tensorrt"
    assert choose_backend("onnxruntime").backend == "onnxruntime"


def test_a_plugin_that_is_asked_for_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plugin, "PLACES", (tmp_path / "plugin.so",))
    monkeypatch.delenv(plugin.VARIABLE, raising=False)
    with pytest.raises(UnavailableError, match="no TensorRT plugin"):
        check_attention("plugin", "tensorrt")
    for wanted in ("auto", "native"):
        check_attention(wanted, "tensorrt")
        check_attention(wanted, "onnxruntime")
    (tmp_path / "plugin.so").write_bytes(b"")
    check_attention("plugin", "tensorrt")
    with pytest.raises(UnavailableError, match="is TensorRT's, and this builds for onnxruntime"):
        check_attention("plugin", "onnxruntime")


@pytest.mark.usefixtures("no_gpu")
def test_a_bundle_for_tensorrt_does_not_run_without_it(tmp_path: Path) -> None:
    path = build_bundle(tmp_path / "bundle")
    manifest = Bundle.open(path).manifest.model_copy(update={"backend": "tensorrt"})
    write_manifest(path, manifest)
    with pytest.raises(UnavailableError, match=r"no NVIDIA GPU found.*--backend onnxruntime"):
        load_runner(Bundle.open(path))


def test_tensorrts_own_words_on_a_plan() -> None:
    trt = FakeTensorRt(FakeCuda)
    with pytest.raises(UnavailableError, match=r"cannot load plan x \(Magic tag does not match\)"):
        TensorRtEngine(trt, b"something else", "plan x")
