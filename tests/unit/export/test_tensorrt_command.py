"""`metal-edge build-engine BUNDLE`: the step on the device, which has no training packages."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import trial_child
from support.attention_bundle import attention_bundle
from support.cli import Call, called, listing
from support.tensorrt_machine import Machine
from support.tiny_bundle import build_bundle

from metal_edge.bundle import Bundle


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    with called(monkeypatch, capfd) as calling:
        yield calling


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return build_bundle(tmp_path / "tiny.bundle")


def test_on_the_device(
    bundle: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "plans", monkeypatch)
    build = ("build-engine", bundle, "--backend", "tensorrt", "-o", bundle, "--json")
    first = call(*build, "--workspace", 64, "--timing-cache", tmp_path / "timings")
    assert first.code == 0, first.err
    assert first.json["backend"] == Bundle.open(bundle).manifest.backend == "tensorrt"
    assert first.json["sha256"] == Bundle.open(bundle).digest
    plan = first.json["plan"]
    assert plan["fresh"] is True
    assert (plan["gpu"], plan["tensorrt"], plan["workspace_mib"]) == ("Fake Orin", "10.3.0", 64)
    assert Path(plan["folder"]).parent == tmp_path / "plans"
    assert (tmp_path / "timings").is_file()
    assert "precision fp32, as in" in first.err
    again = call(*build)
    assert again.json["plan"]["fresh"] is False
    assert again.json["sha256"] == first.json["sha256"]
    words = call(*build[:-1])
    assert "plan for Fake Orin (sm 8.7), TensorRT 10.3.0" in words.out
    assert "1 golden images pass on it: worst difference 0, tolerance 1e-05" in words.out
    machine.check_released()


def test_refusals_write_nothing(
    bundle: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "plans", monkeypatch)
    before = listing(tmp_path)
    build = ("build-engine", bundle, "-o", tmp_path / "out")
    plugin = call(*build, "--attention", "plugin")
    assert plugin.code == 69
    assert "no TensorRT plugin" in plugin.error
    rate = call(*build, "--false-reject-rate", 0.1)
    assert rate.code == 78
    assert ": --false-reject-rate would have no effect" in rate.error
    precision = call(*build, "--precision", "fp16", "--calibration", "minmax")
    assert ": --calibration, --precision would have no effect" in precision.error
    machine.trt.refuses = "out of scratch memory"
    refused = call(*build)
    assert refused.code == 69
    assert "out of scratch memory" in refused.error
    assert "--workspace" in refused.error
    after = {k: v for k, v in listing(tmp_path).items() if not k.startswith("plans")}
    assert after == before


def test_whose_attention(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = attention_bundle(tmp_path / "tiny.bundle")
    machine = Machine(tmp_path / "plans", monkeypatch)
    machine.install_plugin()
    build = ("build-engine", bundle, "--backend", "tensorrt", "-o", tmp_path / "out")
    asked = call(*build, "--attention", "plugin", "--json")
    assert asked.code == 0, asked.err
    plan = asked.json["plan"]
    assert (plan["asked"], plan["attention"], plan["replaced"]) == ("plugin", "plugin", 1)
    assert plan["plugin_sha256"] == hashlib.sha256(machine.library.read_bytes()).hexdigest()
    again = call(*build, "--attention", "plugin", "--json")
    assert again.json["plan"]["fresh"] is False
    native = call(*build, "--attention", "native")
    assert "with --attention plugin, not native" in native.err
    assert "attention: native, as asked" in native.out
    chosen = call(*build)
    assert "timing native, plugin" in chosen.err
    words = r"attention: (native|plugin), chosen by auto \(median of a frame: native .* plugin .*\)"
    assert re.search(words, chosen.out), chosen.out
    refused = call(*build, "--backend", "onnxruntime", "--attention", "plugin")
    assert refused.code == 69
    assert "--attention plugin is TensorRT's" in refused.error
    machine.check_released()


def test_ctrl_c_during_the_build(
    bundle: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "plans", monkeypatch)
    machine.trt.during_build = lambda: os.kill(os.getpid(), signal.SIGINT)
    before = listing(bundle)
    stopped = call("build-engine", bundle, "-o", bundle)
    assert stopped.code == 130
    assert "stopped; no plan and no bundle were written" in stopped.err
    assert "Traceback" not in stopped.err
    assert listing(bundle) == before
    assert not list((tmp_path / "plans").glob("*"))
    machine.check_released()


def test_ctrl_c_while_a_process_of_auto_builds(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = attention_bundle(tmp_path / "tiny.bundle")
    machine = Machine(tmp_path / "plans", monkeypatch)
    machine.install_plugin()
    machine.start_processes("native/build/Ctrl-C")
    before = listing(bundle)
    stopped = call("build-engine", bundle, "--backend", "tensorrt", "-o", bundle)
    assert stopped.code == 130
    assert "stopped; no plan and no bundle were written" in stopped.err
    assert "Traceback" not in stopped.err
    assert listing(bundle) == before
    assert not list((tmp_path / "plans").glob("*"))
    assert not trial_child.running()
    machine.check_released()


def test_for_onnx_runtime(bundle: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    result = call("build-engine", bundle, "--backend", "onnxruntime", "--workspace", 9, "-o", out)
    assert result.code == 0, result.err
    assert "concern TensorRT only" in result.err
    assert Bundle.open(out).manifest == Bundle.open(bundle).manifest


def test_no_training_package_is_needed() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'safetensors', 'onnxscript', 'onnxsim', 'tensorrt',"
        " 'pycuda', 'cuda'):\n"
        "    sys.modules[name] = None\n"
        "import metal_edge.cli.engine\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
