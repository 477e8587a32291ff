"""The project's own builder, run on a real TensorRT builder (RTX, without a GPU)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support.tensorrt_graphs import Graphs

from metal_edge.errors import DataError
from metal_edge.export.tensorrt_builder import BuildLog
from metal_edge.export.tensorrt_children import run_job
from metal_edge.export.tensorrt_trial import Job
from tools.tensorrt import rtx
from tools.tensorrt.rtx import OwnBuild, build_own
from tools.tensorrt.wheels import CACHE, UnobtainableError, combined


def attempt(graph: Path) -> OwnBuild:
    try:
        return build_own(graph)
    except UnobtainableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_builds_tells_phases_and_keeps_the_words_of_tensorrt(
    tiny: Graphs, precision: str
) -> None:
    done = attempt(getattr(tiny, precision))
    assert not done.error
    assert done.bytes > 10_000
    assert any(steps > 0 for steps in done.phases.values())
    assert "Engine generation completed" in done.log


def test_an_error_of_the_parser_is_told_with_its_node(tiny: Graphs) -> None:
    done = attempt(tiny.onnxruntime)
    assert done.error.startswith("DataError: TensorRT cannot parse")
    assert "DequantizeLinear" in done.error
    assert "\n" not in done.error


def test_a_truncated_file_is_refused(tiny: Graphs, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    content = tiny.fp16.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert attempt(path).error.startswith(f"DataError: TensorRT cannot parse {path}")


def test_a_process_of_auto_builds_and_passes_everything_on(
    tiny: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT calls back from C++ in one process; words and steps arrive in this one."""
    root = Path(rtx.__file__).parents[2]
    try:
        monkeypatch.setenv("PYTHONPATH", f"{combined('rtx', CACHE)}{os.pathsep}{root}")
    except UnobtainableError as error:
        pytest.skip(str(error))
    steps: dict[str, int] = {}
    log = BuildLog(lambda phase, done, _total: steps.update({phase: done}))
    command = (sys.executable, "-m", "tools.tensorrt.rtx_trial_probe")
    job = Job(
        step="build",
        name="native",
        plugin=False,
        model=tiny.fp16,
        plan=tmp_path / "engine.plan",
        bundle=tmp_path,
        workspace_mib=256,
        timing_cache=tmp_path / "timings",
    )
    found = run_job(job, log, command=command)
    assert found["bytes"] == job.plan.stat().st_size > 10_000
    assert any(done > 0 for done in steps.values())
    assert "Engine generation completed" in log.text
    assert "timing cache in use" in log.text
    measured = (tmp_path / "timings").read_bytes()
    assert measured
    (tmp_path / "timings").write_bytes(b"of something else")
    assert run_job(job, log, command=command)["bytes"] == found["bytes"]
    assert (tmp_path / "timings").read_bytes()[:4] == measured[:4]
    refused = job.model_copy(update={"model": tiny.onnxruntime})
    with pytest.raises(DataError, match=r"TensorRT cannot parse .*DequantizeLinear"):
        run_job(refused, log, command=command)
