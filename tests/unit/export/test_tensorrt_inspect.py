"""What `inspect` and `bench` say of a bundle's TensorRT plans, with stand-ins for both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from support.attention_bundle import attention_bundle, attention_model
from support.cli import Call, called
from support.tensorrt_machine import Machine
from support.tiny_bundle import SIZE

from metal_edge.bundle import Bundle
from metal_edge.cli import bench
from metal_edge.cli.resident import measure
from metal_edge.errors import UnavailableError
from metal_edge.export import tensorrt_attention
from metal_edge.export.tensorrt_inspect import layers_of
from metal_edge.runtime.plan_cache import MAX_BATCH, PLAN


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    with called(monkeypatch, capfd) as calling:
        yield calling


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(tensorrt_attention, "FRAMES", 5)
    machine = Machine(tmp_path / "plans", monkeypatch)
    machine.install_plugin()
    machine.trt.costs = (3e-3, 1e-3)
    return machine


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A calibrated graph, so that there are three candidates."""
    return attention_bundle(tmp_path / "tiny.bundle", attention_model(amplitudes=True))


def build(call: Call, bundle: Path, *options: object) -> None:
    built = call("build-engine", bundle, "--backend", "tensorrt", "-o", bundle, *options)
    assert built.code == 0, built.err


def test_the_attention_of_a_plan_its_rivals_and_its_plugin(
    machine: Machine, bundle: Path, call: Call
) -> None:
    assert call("inspect", bundle, "--json").json["plans"] == []
    assert "TensorRT plans" not in call("inspect", bundle).out
    machine.trt.during_build = lambda: setattr(
        machine.trt, "plugin_refuses", "" if len(machine.trt.builds) < 3 else "no format"
    )
    build(call, bundle)
    (plan,) = call("inspect", bundle, "--json").json["plans"]
    assert (plan["attention"], plan["asked"], plan["damaged"]) == ("plugin int8", "auto", None)
    assert plan["plugin_sha256"] == hashlib.sha256(machine.library.read_bytes()).hexdigest()
    rivals = {one["attention"]: one for one in plan["candidates"]}
    assert {name: one["correct"] for name, one in rivals.items()} == {
        "native": True,
        "plugin int8": True,
        "plugin": False,
    }
    assert (rivals["native"]["frames"], rivals["native"]["golden_images"]) == (10, 1)
    assert "no format" in rivals["plugin"]["why"]
    said = call("inspect", bundle).out
    assert f"Fake Orin (sm 8.7), TensorRT 10.3.0, plugin {plan['plugin_sha256'][:8]}" in said
    assert "attention plugin int8 (asked for auto)" in said
    lines = [line.split() for line in said.splitlines()]
    native = f"{rivals['native']['median_ms']:.3f}"
    assert ["native", native, "ms,", "median", "of", "10", "frames;"] in [w[:7] for w in lines]
    assert ["plugin", "out:"] in [words[:2] for words in lines]
    back = call("build-engine", bundle, "--backend", "onnxruntime", "-o", bundle)
    assert back.code == 0, back.err
    assert call("inspect", bundle, "--json").json["plans"] == [], "it does not run them"


def test_a_plan_that_was_cut_short_and_a_machine_without_plans(
    machine: Machine, bundle: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(call, bundle, "--attention", "native")
    (plan,) = call("inspect", bundle, "--json").json["plans"]
    assert "candidates" not in plan
    file = Path(plan["folder"]) / PLAN
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file} is truncated" in call("inspect", bundle).out
    file.unlink()
    assert f"cannot read {file} (No such file" in call("inspect", bundle).out
    monkeypatch.setenv("METAL_EDGE_PLANS", str(machine.plans / "elsewhere"))
    assert "none in this machine's caches" in call("inspect", bundle).out


@pytest.mark.parametrize("attention", ["native", "plugin"])
def test_the_layers_as_tensorrt_lists_them(
    machine: Machine, bundle: Path, call: Call, attention: str
) -> None:
    build(call, bundle, "--attention", attention)
    machine.restart()
    layers = json.loads(layers_of(Bundle.open(bundle)))["Layers"]
    native = {node.name for node in onnx.load(bundle / "model.onnx").graph.node}
    assert (set(layers) <= native) == (attention == "native")
    machine.check_released()
    (plan,) = call("inspect", bundle, "--json").json["plans"]
    (Path(plan["folder"]) / PLAN).write_bytes(b"")
    with pytest.raises(UnavailableError, match="truncated"):
        layers_of(Bundle.open(bundle))


def test_memory_of_a_plan_is_that_on_the_gpu_too(
    machine: Machine, bundle: Path, tmp_path: Path, call: Call
) -> None:
    """Buffers for the largest batch, of a picture, a map and a score."""
    cpu = attention_bundle(tmp_path / "cpu.bundle")
    build(call, bundle, "--attention", "native")
    found = measure(bundle, 1, 1)
    buffers = MAX_BATCH * (SIZE * SIZE * 3 + 4 * (8 * 8 + 1))
    assert found["gpu_mib"] == round(buffers / 2**20, 2) > 0
    assert "gpu_mib" not in measure(cpu, 1, 1)
    machine.check_released()


def test_bench_names_the_attention_beside_bundles_that_have_none(
    machine: Machine,
    bundle: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def memory(path: Path, *_: int) -> dict[str, float]:
        return {"resident_mib": 1.0} | ({"gpu_mib": 77.0} if path == bundle else {})

    monkeypatch.setattr(bench, "resident_memory", memory)
    cpu = attention_bundle(tmp_path / "cpu.bundle")
    build(call, bundle, "--attention", "plugin")
    timed = call("bench", cpu, bundle, "--frames", 10, "--json").json["bundles"]
    assert [row.get("attention") for row in timed] == [None, "plugin int8"]
    head, first, second, _ = call("bench", cpu, bundle, "--frames", 10).out.splitlines()
    at = head.index("attention")
    assert first[at:].startswith("- ")
    assert second[at:].startswith("plugin int8 ")
    assert head.endswith("GPU MiB")
    assert (first.split()[-1], second.split()[-1]) == ("-", "77")
    alone = call("bench", cpu, "--frames", 10).out.splitlines()
    assert "attention" not in alone[0]
