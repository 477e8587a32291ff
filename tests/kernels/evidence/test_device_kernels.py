"""The device check's kernel part with a real build, on the emulation in place of a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.device.kernels import check_kernels
from tools.kernels import build

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("g++") is None, reason="needs cmake and g++"
)


def test_the_benchmark_is_built_run_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAL_EDGE_PLUGIN", "/opt/plugin.so")  # only the benchmark is built
    found = check_kernels(
        build.CACHE / "device-check",  # built by test_bench too
        options=("-DMETAL_EDGE_CUDA=OFF",),
        words=("--case", "metal-stripes", "--case", "zeroleak"),
    )
    assert found.wrong is None
    assert found.table is not None
    assert "zeroleak" in found.table
    assert found.result is not None
    assert [(row["case"], row["type"]) for row in found.result["results"]] == [
        ("metal-stripes", "float16"),
        ("metal-stripes", "float32"),
        ("zeroleak", "float16"),
        ("zeroleak", "int8"),
        ("zeroleak", "float32"),
    ]
    assert any("metal-stripes, int8: not supported" in note for note in found.notes)


def test_a_project_that_does_not_build_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAL_EDGE_PLUGIN", "/opt/plugin.so")
    kernels = tmp_path / "kernels"
    shutil.copytree(build.KERNELS, kernels)
    project = kernels / "bench" / "CMakeLists.txt"
    project.write_text('message(FATAL_ERROR "this is broken")\n' + project.read_text())
    found = check_kernels(tmp_path / "out", kernels=kernels, options=("-DMETAL_EDGE_CUDA=OFF",))
    assert found.table is None
    assert "this is broken" in found.notes[0]
