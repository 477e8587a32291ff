"""Whose attention a plan gets: what was asked for, what is there, what is right, what is faster."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.attention_bundle import attention_bundle, attention_model
from support.fake_tensorrt import LIBRARY_MARK
from support.tensorrt_machine import Machine
from support.tiny_bundle import SIZE, build_bundle

from metal_edge.bundle import Bundle
from metal_edge.errors import BundleError, MetalEdgeError, UnavailableError
from metal_edge.export import attention_variants, tensorrt_attention
from metal_edge.export.tensorrt_attention import Attention
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions
from metal_edge.export.tensorrt_bundle import Plan, ensure_plan, rewrite_bundle
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

PLUGIN_FASTER, NATIVE_FASTER = (3e-3, 1e-3), (1e-3, 3e-3)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(tensorrt_attention, "FRAMES", 5)
    machine = Machine(tmp_path / "plans", monkeypatch)
    machine.install_plugin()
    machine.trt.costs = PLUGIN_FASTER
    return machine


@pytest.fixture
def source(tmp_path: Path) -> Bundle:
    return Bundle.open(attention_bundle(tmp_path / "source"))


class Build:
    """One call of `ensure_plan`; `said` and `log` are what a person was told."""

    def __init__(self, machine: Machine, bundle: Bundle, attention: Attention = "auto") -> None:
        self.said: list[str] = []
        self.log = BuildLog(lambda *_: None)
        self.plan: Plan = ensure_plan(
            bundle,
            BuildOptions(),
            self.log,
            self.said.append,
            lambda: datetime(2026, 1, 1, tzinfo=UTC),
            attention=attention,
        )

    @property
    def build(self) -> dict[str, Any]:
        return self.plan.cached.manifest.build

    @property
    def medians(self) -> dict[str, float]:
        """Of the correct candidates, in milliseconds."""
        found = self.build["candidates"]
        return {one["attention"]: one["median_ms"] for one in found if one["correct"]}

    @property
    def out(self) -> dict[str, str]:
        """Why the others are out."""
        found = self.build["candidates"]
        return {one["attention"]: one["why"] for one in found if not one["correct"]}


def test_auto_keeps_the_faster(machine: Machine, source: Bundle) -> None:
    made = Build(machine, source)
    assert made.build["attention"] == "plugin"
    assert (made.medians, made.out) == ({"native": 3.0, "plugin": 1.0}, {})
    assert (made.build["replaced"], made.build["kept"]) == (1, [])
    for one in made.build["candidates"]:
        assert (one["golden_images"], one["worst_difference"]) == (1, 0.0)
        assert one["tolerance"] == pytest.approx(1e-5)
        assert one["frames"] == 10
    assert made.plan.cached.manifest.needs_plugin
    assert len(machine.trt.builds) == 2
    assert "INFO attention: native\nINFO building\nINFO attention: plugin\n" in made.log.text
    machine.trt.costs = NATIVE_FASTER
    machine.trt.__version__ = "10.4"
    made = Build(machine, source)
    assert made.build["attention"] == "native"
    assert made.medians == {"native": 1.0, "plugin": 3.0}
    assert not made.plan.cached.manifest.needs_plugin
    machine.check_released()


def test_every_candidate_is_built_with_what_was_asked_for(
    machine: Machine, source: Bundle, tmp_path: Path
) -> None:
    timings = tmp_path / "timings"
    ensure_plan(
        source,
        BuildOptions(64, timings),
        BuildLog(lambda *_: None),
        list[str]().append,
        lambda: datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert [asked["workspace"] for asked in machine.trt.builds] == [64 << 20] * 2
    assert [asked["timings"] for asked in machine.trt.builds] == [[b""], [b"timed "]]
    assert timings.read_bytes() == b"timed timed "


@pytest.mark.parametrize("attention", ["plugin", "native"])
def test_what_was_asked_for_is_built_however_fast(
    machine: Machine, source: Bundle, attention: Attention
) -> None:
    machine.trt.costs = NATIVE_FASTER if attention == "plugin" else PLUGIN_FASTER
    made = Build(machine, source, attention)
    assert (made.build["attention"], made.build["asked"]) == (attention, attention)
    assert len(machine.trt.builds) == 1
    machine.check_released()


def test_a_plan_of_another_wish_is_built_anew(machine: Machine, source: Bundle) -> None:
    assert Build(machine, source, "native").plan.fresh
    assert not Build(machine, source, "native").plan.fresh
    again = Build(machine, source, "plugin")
    assert again.plan.fresh
    assert "was built with --attention native, not plugin" in again.said[0]


def test_another_plugin_is_another_plan(machine: Machine, source: Bundle, tmp_path: Path) -> None:
    first = Build(machine, source)
    bundle, _ = rewrite_bundle(source, tmp_path / "out", "tensorrt", first.plan)
    machine.restart()
    machine.install_plugin(f"{machine.PLUGIN} Another 2")
    words = r"no TensorRT plan for .*plugin \w{8} in .*there is one for .*plugin \w{8}\)"
    with pytest.raises(UnavailableError, match=words):
        load_runner(bundle)
    assert Build(machine, source).plan.cached.folder != first.plan.cached.folder
    machine.library.unlink()
    with pytest.raises(UnavailableError, match=r"10\.3\.0 in .*there is one for .*plugin"):
        load_runner(bundle)
    machine.check_released()


def test_the_daemon_loads_the_plugin_for_plans_that_need_it(
    machine: Machine, source: Bundle, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    for attention, loads in (("plugin", 1), ("native", 0)):
        plan = Build(machine, source, attention).plan  # type: ignore[arg-type]
        bundle, _ = rewrite_bundle(source, tmp_path / attention, "tensorrt", plan)
        machine.restart()
        machine.trt.registry.loaded.clear()
        with load_runner(bundle) as runner, OnnxRuntimeRunner(source.model_path) as reference:
            for got, expected in zip(runner.run(pixels), reference.run(pixels), strict=True):
                assert got.score == pytest.approx(expected.score, rel=1e-5)
        assert len(machine.trt.registry.loaded) == loads
        with load_runner(bundle):
            assert len(machine.trt.registry.loaded) == loads, "once per process"
    machine.check_released()


def spoil(what: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bundle:
    """Makes the plugin useless for the bundle that is returned."""
    if what == "no attention":
        return Bundle.open(build_bundle(tmp_path / "bundle"))
    if what == "missing":
        machine.library.unlink()
    elif what == "not a library":
        machine.install_plugin("text")
    elif what == "another version":
        machine.install_plugin(f"{LIBRARY_MARK} MaskedAttention 2")
    elif what == "no onnx":
        for name in list(sys.modules):
            if name.startswith("metal_edge.export.attention_"):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "onnx", None)
    elif what == "does not build":
        machine.trt.plugin_refuses = "no format combination"
    elif what == "wrong scores":
        machine.trt.plugin_bias = 0.01
    model = attention_model()
    if what == "odd graph":
        next(n for n in model.graph.node if n.op_type == "Softmax").attribute[0].i = 2
    return Bundle.open(attention_bundle(tmp_path / "bundle", model))


SPOILT = {
    "no attention": (r"no attention of .* is the plugin's \(it has none\)", 1),
    "missing": (r"there is no TensorRT plugin \(METAL_EDGE_PLUGIN, .*\.so\)", 1),
    "not a library": (r"TensorRT cannot load the plugin .*\.so", 1),
    "another version": (r"has no MaskedAttention of version 1", 1),
    "no onnx": (r"needs the Python package onnx", 1),
    "odd graph": (r"no attention of .* \(attention_softmax: softmax over axis 2", 1),
    "does not build": (r"attention plugin is out: .*no format combination", 2),
    "wrong scores": (r"attention plugin is out: golden image .* scored 0.01, expected 0", 2),
}


@pytest.mark.parametrize("what", SPOILT)
def test_auto_says_in_one_line_why_it_stays_native(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    words, builds = SPOILT[what]
    bundle = spoil(what, machine, monkeypatch, tmp_path)
    made = Build(machine, bundle)
    assert made.build["attention"] == "native"
    told = [line for line in made.said if "attention" in line and "plan for" not in line]
    assert len(told) == 1
    assert re.search(words, told[0]), told
    assert "\n" not in told[0]
    assert len(machine.trt.builds) == builds
    machine.check_released()


@pytest.mark.parametrize("what", SPOILT)
def test_plugin_fails_with_the_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    words = SPOILT[what][0].removeprefix("attention plugin is out: ")
    bundle = spoil(what, machine, monkeypatch, tmp_path)
    with pytest.raises(MetalEdgeError, match=words):
        Build(machine, bundle, "plugin")
    assert not [p for p in machine.plans.iterdir() if p.is_dir()]
    machine.check_released()


def test_where_native_fails_the_plugin_may_still_do(machine: Machine, source: Bundle) -> None:
    machine.trt.bias, machine.trt.plugin_bias = 0.01, -0.01
    made = Build(machine, source)
    assert made.build["attention"] == "plugin"
    assert "scored 0.01" in made.out["native"]
    machine.trt.plugin_bias = 0.02
    machine.trt.__version__ = "10.4"
    with pytest.raises(BundleError, match=r"scored 0\.01, expected 0"):
        Build(machine, source)
    machine.check_released()


def test_a_calibrated_graph_is_tried_with_int8_and_with_float_attention(
    machine: Machine, tmp_path: Path
) -> None:
    bundle = Bundle.open(attention_bundle(tmp_path / "bundle", attention_model(amplitudes=True)))
    made = Build(machine, bundle)
    assert set(made.medians) == {"native", "plugin int8", "plugin"}
    assert made.build["attention"] == "plugin int8"


UNPROVEN = {
    "its parity with fp32 was not checked when the bundle was built": None,
    "its parity with fp32 is not in the bundle": {"parity": {}},
    "int8 with the plugin's attention differs": {
        "refused": "int8 with the plugin's attention differs"
    },
}


@pytest.mark.parametrize("why", UNPROVEN)
def test_int8_attention_whose_parity_is_not_proven_is_not_even_built(
    machine: Machine, tmp_path: Path, why: str
) -> None:
    model = attention_model(amplitudes=True)
    bundle = Bundle.open(attention_bundle(tmp_path / "bundle", model, UNPROVEN[why]))
    made = Build(machine, bundle, "plugin")
    assert made.out == {"plugin int8": why}
    assert f"attention plugin int8 is out: {why}" in made.said
    assert made.build["attention"] == "plugin"
    assert len(machine.trt.builds) == 1


def test_a_surgery_that_fails_is_no_reason_to_have_no_plan(
    machine: Machine, source: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: onnx.ModelProto) -> None:
        raise RuntimeError("no shape\nfor node 7")

    monkeypatch.setattr(attention_variants, "plugin_graphs", fails)
    made = Build(machine, source)
    assert made.build["attention"] == "native"
    assert "cannot be put into" in made.said[-1] and "(no shape)" in made.said[-1]
    with pytest.raises(UnavailableError, match=r"model\.onnx \(no shape\)"):
        Build(machine, source, "plugin")


def test_the_bundles_own_graph_stays_native(
    machine: Machine, source: Bundle, tmp_path: Path
) -> None:
    bundle, _ = rewrite_bundle(
        source, tmp_path / "out", "tensorrt", Build(machine, source, "plugin").plan
    )
    assert bundle.model_path.read_bytes() == source.model_path.read_bytes()
    assert all(node.domain == "" for node in onnx.load(bundle.model_path).graph.node)
