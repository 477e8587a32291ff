"""From a bundle to a plan and a daemon's runner, with TensorRT and the GPU as stand-ins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from support.tensorrt_machine import Machine
from support.tiny_bundle import build_bundle, probe

from metal_edge.bundle import Bundle
from metal_edge.errors import BundleError, OutputError, UnavailableError
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions
from metal_edge.export.tensorrt_bundle import Plan, ensure_plan, rewrite_bundle
from metal_edge.runtime.load import check_golden, load_runner
from metal_edge.runtime.plan_cache import LOG, MANIFEST, PLAN, describe_plan, write_plan

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "plans", monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Bundle:
    return Bundle.open(build_bundle(tmp_path / "source"))


def plan_of(bundle: Bundle, said: list[str] | None = None) -> Plan:
    """Builds, with a clock that takes 90 s from one look to the next."""
    times = (START + timedelta(seconds=90 * n) for n in range(9))
    words: list[str] = [] if said is None else said
    log = BuildLog(lambda *_: None)
    return ensure_plan(bundle, BuildOptions(64), log, words.append, lambda: next(times))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_bundle_plan_and_runner(machine: Machine, source: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    plan = plan_of(source, said)
    assert plan.fresh
    assert "no TensorRT plan for Fake Orin (sm 8.7), TensorRT 10.3.0" in said[0]
    assert "there is no TensorRT plugin" in said[1]
    assert {p.name for p in plan.cached.folder.iterdir()} == {PLAN, MANIFEST, LOG}
    assert plan.cached.manifest.build == {
        "precision": "fp32",
        "asked": "auto",
        "attention": "native",
        "without_plugin": plan.cached.manifest.build["without_plugin"],
        "workspace_mib": 64,
        "seconds": 90.0,
    }
    bundle, golden = rewrite_bundle(source, tmp_path / "out", "tensorrt", plan)
    assert (golden.images, golden.worst_difference) == (1, 0.0)
    assert bundle.manifest == source.manifest.model_copy(update={"backend": "tensorrt"})

    with load_runner(bundle) as runner, load_runner(source) as reference:
        check_golden(bundle, runner)
        images = np.concatenate([probe(level) for level in range(0, 250, 13)])
        for got, expected in zip(runner.run(images), reference.run(images), strict=True):
            assert got.score == expected.score
            np.testing.assert_array_equal(got.anomaly_map, expected.anomaly_map)
    machine.check_released()


def test_an_intact_plan_is_used_again(machine: Machine, source: Bundle) -> None:
    plan_of(source)
    again = plan_of(source)
    assert not again.fresh
    assert len(machine.trt.builds) == 1
    (again.cached.folder / PLAN).write_bytes(b"short")
    said: list[str] = []
    assert plan_of(source, said).fresh
    assert "truncated" in said[0]
    machine.check_released()


def test_another_workspace_is_built_anew_where_one_is_named(
    machine: Machine, source: Bundle
) -> None:
    def built(workspace: int | None) -> tuple[bool, list[str]]:
        said: list[str] = []
        options, log = BuildOptions(workspace), BuildLog(lambda *_: None)
        return ensure_plan(source, options, log, said.append, lambda: START).fresh, said

    assert built(None)[0]
    fresh, said = built(64)
    assert fresh and "was built with all the workspace, not 64" in said[0]
    fresh, said = built(128)
    assert fresh and "was built with --workspace 64, not 128" in said[0]
    assert not built(128)[0]
    assert not built(None)[0]
    assert [asked.get("workspace") for asked in machine.trt.builds] == [None, 64 << 20, 128 << 20]
    machine.check_released()


def test_what_a_killed_build_left_goes_and_what_it_moved_aside_comes_back(
    machine: Machine, source: Bundle, tmp_path: Path
) -> None:
    """4194305 is above the highest process number."""
    plan = plan_of(source).cached.folder
    partial = plan.with_name(f".{plan.name}.4194305.partial")
    plan.rename(plan.with_name(f".{plan.name}.4194305.old"))
    partial.mkdir()
    bundle = tmp_path / ".out.4194305.partial"
    bundle.mkdir()
    again = plan_of(source)
    assert not again.fresh
    assert not partial.exists()
    rewrite_bundle(source, tmp_path / "out", "tensorrt", again)
    assert not bundle.exists()


@pytest.mark.parametrize("changed", ["version", "gpu", "model"])
def test_another_version_gpu_or_model_is_built_anew(
    machine: Machine, source: Bundle, tmp_path: Path, changed: str
) -> None:
    first = plan_of(source)
    if changed == "version":
        machine.trt.__version__ = "10.16.2"
    elif changed == "gpu":
        machine.gpu = "Fake Thor"
    else:
        source = Bundle.open(build_bundle(tmp_path / "other", fault="nan_map"))
    second = plan_of(source)
    assert second.fresh
    assert second.cached.folder != first.cached.folder


def test_the_daemon_does_not_build(machine: Machine, source: Bundle, tmp_path: Path) -> None:
    bundle, _ = rewrite_bundle(source, tmp_path / "out", "tensorrt", plan_of(source))
    machine.trt.__version__ = "10.16.2"  # the device was updated
    words = r"no TensorRT plan for .* 10\.16\.2 .*there is one for .* 10\.3\.0.*build-engine"
    with pytest.raises(UnavailableError, match=words):
        load_runner(bundle)
    assert len(machine.trt.builds) == 1
    machine.check_released()


def test_a_plan_that_tensorrt_refuses(machine: Machine, source: Bundle, tmp_path: Path) -> None:
    plan = plan_of(source)
    bundle, _ = rewrite_bundle(source, tmp_path / "out", "tensorrt", plan)
    key, content = plan.cached.manifest.key, b"whole, but no plan"
    write_plan(machine.plans, describe_plan(key, content, "2026-01-01", {}), content, "")
    with pytest.raises(UnavailableError, match=r"Magic tag does not match.*build-engine"):
        load_runner(bundle)
    machine.check_released()


def test_golden_images_must_pass_on_the_plan(
    machine: Machine, source: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rewrite_bundle(source, out, "tensorrt", plan_of(source))
    before = contents(out)
    plan = plan_of(source)
    machine.trt.bias = 0.01
    with pytest.raises(BundleError, match=r"scored 0\.01, expected 0"):
        rewrite_bundle(source, out, "tensorrt", plan)
    assert contents(out) == before
    assert not plan.cached.folder.exists(), "the next build would find it again"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    machine.check_released()


def test_a_failed_build_leaves_its_words(machine: Machine, source: Bundle) -> None:
    machine.trt.refuses = "no implementation for node 7"
    with pytest.raises(UnavailableError, match=r"node 7.*all its words: .*\.failed\.log"):
        plan_of(source)
    (log,) = machine.plans.iterdir()
    said = "INFO attention: native\nINFO building\nERROR no implementation for node 7\n"
    assert log.read_text() == said
    machine.trt.refuses = ""
    plan_of(source)
    assert not log.exists()
    machine.check_released()


def test_a_cache_that_cannot_be_written_is_said_before_the_build(
    machine: Machine, source: Bundle
) -> None:
    machine.plans.write_text("a file is in the way")
    with pytest.raises(OutputError, match="cannot write plans into"):
        plan_of(source)
    assert not machine.trt.builds
    machine.check_released()


def test_a_timing_cache_that_cannot_be_written_is_said_before_the_build(
    machine: Machine, source: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    options = BuildOptions(timing_cache=tmp_path / "file" / "timings")
    with pytest.raises(OutputError, match=r"cannot write the timing cache into .*--timing-cache"):
        ensure_plan(source, options, BuildLog(lambda *_: None), list[str]().append, lambda: START)
    assert not machine.trt.builds
    machine.check_released()


def test_a_bundle_may_be_written_onto_itself(machine: Machine, source: Bundle) -> None:
    before = source.manifest
    bundle, _ = rewrite_bundle(source, source.path, "tensorrt", plan_of(source))
    again, _ = rewrite_bundle(bundle, source.path, "tensorrt", plan_of(bundle))
    assert again.digest == bundle.digest
    back, _ = rewrite_bundle(again, source.path, "onnxruntime")
    assert back.manifest == before
    assert len(machine.trt.builds) == 1
