"""The device check: what it compares, what it prints, and that it refuses without a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metal_edge.domain import Inspection
from metal_edge.runtime.tensorrt_load import missing_for_tensorrt, missing_gpu
from tools.device import __main__ as command
from tools.device import counters, gpu_tests, proof, torch_peers
from tools.device.agreement import Agreement, compare
from tools.device.gpu_tests import Step, run
from tools.device.kernels import Kernels, check_kernels
from tools.device.report import Engine, Latency, Report, render


def inspections(scores: list[float], maps: float = 1.0) -> list[Inspection]:
    grid = np.arange(64, dtype=np.float32).reshape(8, 8)
    return [Inspection(maps * grid + np.float32(score), score) for score in scores]


def test_equal_runners_agree_and_the_margin_is_the_nearest_score() -> None:
    seen = inspections([1.0, 1.9, 4.0])
    agreed = compare(seen, seen, threshold=2.0)
    assert (agreed.frames, agreed.worst_score, agreed.flipped) == (3, 0.0, 0)
    assert agreed.map_correlation == pytest.approx(1.0)
    assert agreed.margin == pytest.approx(0.05)


def test_a_verdict_on_the_other_side_of_the_threshold_is_counted() -> None:
    agreed = compare(inspections([1.0, 1.9, 4.0]), inspections([1.0, 2.0, 3.0]), threshold=2.0)
    assert agreed.flipped == 1
    assert agreed.worst_score == pytest.approx(0.5)


def test_a_nan_flips_what_passed_and_shows_in_the_correlation() -> None:
    agreed = compare(inspections([1.0]), inspections([np.nan]), threshold=2.0)
    assert agreed.flipped == 1
    assert np.isnan(agreed.map_correlation)
    with pytest.raises(ValueError, match="cannot compare"):
        compare(inspections([1.0]), [], threshold=2.0)


def test_the_report_names_what_failed_and_what_differs() -> None:
    same, flipped = Agreement(44, 0.01, 0.9999, 0, 0.2), Agreement(44, 0.2, 0.99, 1, 0.2)
    engines = [
        Engine("fp16", None, {"bytes": 12_300_000, "seconds": 61.0}, same, Latency(2, 3, 300)),
        Engine("int8", None, {"bytes": 9_000_000, "seconds": 70.0}, flipped, Latency(1, 2, 300)),
        Engine("fp32", failure="TensorRT cannot build it"),
    ]
    report = Report({"GPU": "Orin"}, "metal", Latency(9, 10, 300), engines, "make", "2026-01-02T03")
    text = render(report)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert [engine.passed for engine in engines] == [True, False, False]
    assert rows["TensorRT fp16"].endswith("| 0 of 44 | ok |")
    assert rows["TensorRT int8"].endswith("| 1 of 44 | FAILED |")
    assert rows["TensorRT fp32"].endswith("| FAILED |")
    assert "| TensorRT fp16 | 12.3 | 61 |" in text
    assert "* fp32: TensorRT cannot build it" in text
    cells = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(cells) == 1


def report_of(plans: dict[str, dict[str, Any]], kernels: Kernels) -> Report:
    same = Agreement(44, 0.01, 0.9999, 0, 0.2)
    engines = [Engine(name, None, plan, same, Latency(2, 3, 300)) for name, plan in plans.items()]
    return Report({}, "metal", Latency(9, 10, 300), engines, "make", "2026-01-02T03", kernels)


def test_native_and_plugin_attention_stand_side_by_side() -> None:
    plans = {
        "fp16": {
            "attention": "plugin",
            "candidates": [
                {"attention": "native", "correct": True, "median_ms": 0.5},
                {"attention": "plugin", "correct": True, "median_ms": 0.41234},
            ],
        },
        "int8": {
            "attention": "native",
            "candidates": [
                {"attention": "native", "correct": True, "median_ms": 0.4},
                {"attention": "plugin", "correct": False, "why": "golden image 3 differs"},
            ],
        },
        "fp32": {"attention": "native", "without_plugin": "there is no TensorRT plugin"},
    }
    text = render(report_of(plans, Kernels()))
    assert "| precision | native, ms | plugin, ms | in the plan |" in text
    assert "| fp16 | 0.500 | 0.412 | plugin |" in text
    assert "| int8 | 0.400 |  | native |" in text
    assert "* int8: plugin is out: golden image 3 differs" in text
    assert "* fp32: there is no TensorRT plugin" in text
    assert "kernels by themselves" not in text, "an empty section says nothing"


def test_a_wrong_kernel_fails_the_check_though_every_engine_passes() -> None:
    right = report_of({"fp16": {}}, Kernels(table="case  ours\n", notes=("no plugin",)))
    wrong = report_of({"fp16": {}}, Kernels(wrong="off by 3"))
    assert right.passed
    assert not wrong.passed
    assert "WRONG: off by 3" in render(wrong)
    assert "```\ncase  ours\n```" in render(right)
    assert "* no plugin" in render(right)


def test_missing_tools_are_told_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("METAL_EDGE_PLUGIN", raising=False)
    found = check_kernels(tmp_path / "out")
    assert (found.table, found.result, found.wrong) == (None, None, None)
    assert len(found.notes) == 2
    assert all("cmake is not installed" in note for note in found.notes)


def fake_cmake(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a shell script on PATH as cmake."""
    folder.mkdir()
    (folder / "cmake").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cmake").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("METAL_EDGE_PLUGIN", raising=False)


EMULATION = ("-DMETAL_EDGE_CUDA=OFF",)


def test_what_a_build_says_is_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cmake(tmp_path / "bin", monkeypatch, "echo fine; echo 'CMake Error: no headers'; exit 1")
    found = check_kernels(tmp_path / "out", options=EMULATION)
    assert found.notes[0] == "The benchmark of the kernels was not built: CMake Error: no headers"
    assert found.notes[1].startswith("No plugin, so attention is TensorRT's own: CMake Error")


BUILDS = """
if [ "$1" = --build ]; then
  printf '#!/bin/sh\\necho off by 3 >&2; exit %d\\n' {code} > "$2/bench_masked_attention"
  chmod 755 "$2/bench_masked_attention"
else
  mkdir -p "$4"
fi
"""


@pytest.mark.parametrize("code", [1, 69, 139])
def test_how_a_benchmark_ends_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fake_cmake(tmp_path / "bin", monkeypatch, BUILDS.format(code=code))
    found = check_kernels(tmp_path / "out", options=EMULATION)
    assert found.table is None
    assert found.wrong == ("off by 3" if code == 1 else None)
    assert any(f"ended with {code}: off by 3" in note for note in found.notes) is (code != 1)


def test_a_plugin_that_is_named_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("METAL_EDGE_PLUGIN", "/opt/plugin.so")
    found = check_kernels(tmp_path / "out")
    assert "Plugin: /opt/plugin.so, named by METAL_EDGE_PLUGIN." in found.notes


@pytest.mark.skipif(missing_for_tensorrt() is None, reason="this machine can run TensorRT")
def test_without_a_gpu_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--out", str(tmp_path / "out")]) == 69
    assert "needs TensorRT on an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(missing_gpu() is None, reason="this machine has a GPU")
def test_the_kernels_alone_need_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--kernels-only", "--out", str(tmp_path / "out")]) == 69
    assert "the kernels need an NVIDIA GPU and nvcc" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_of_the_kernels_alone_has_no_engines() -> None:
    kernels = Kernels("table", parts=(("Tests", "* all right"),))
    report = Report({"GPU": "H100"}, None, None, [], "make", "2026-01-02T03", kernels)
    text = render(report)
    assert report.passed
    assert "the kernels alone." in text and "### Tests\n\n* all right\n" in text
    assert "| precision |" not in text


NCU = """==PROF== Connected
"ID","Kernel Name","gpu__time_duration.sum","launch__occupancy_limit_registers",\
"launch__occupancy_limit_shared_mem","dram__bytes_read.sum",\
"l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum"
"","","us","block","block","Kbyte","sector"
"0","masked_attention_f16_short_d32","4.064","10","8","1,069.38","512"
"""


def test_counters_are_read_with_their_units_and_the_tightest_limit() -> None:
    (found,) = counters.parse(NCU)
    assert found.kernel == "masked_attention_f16_short_d32"
    assert found.values["us"] == pytest.approx(4.064)
    assert found.values["blocks per SM"] == 8
    assert found.values["DRAM read, KB"] == pytest.approx(1069.38)
    assert found.values["sectors written, KB"] == pytest.approx(16.384)
    assert found.values["bank conflicts"] is None
    line = counters.table(["metal-squares fp16"], [found]).splitlines()[-1]
    assert line.startswith("| metal-squares fp16 | `f16_short_d32` | 4.064 |")
    assert counters.parse("==ERROR== nothing\n") == []


def test_a_program_that_fails_is_wrong_and_one_that_cannot_run_is_not(tmp_path: Path) -> None:
    def step(code: int) -> Step:
        script = f"import sys; print('x SUMMARY: 3 errors'); sys.exit({code})"
        command = [sys.executable, "-c", script]
        return run("memcheck", command, tmp_path / "log", r".*SUMMARY.*")

    assert (step(0).said, step(0).wrong) == ("x SUMMARY: 3 errors", None)
    assert step(86).wrong == "x SUMMARY: 3 errors"
    assert step(69).wrong is None
    missing = run("ncu", [str(tmp_path / "no")], tmp_path / "log", ".*")
    assert missing.wrong is not None and "did not run" in missing.said


def test_what_fails_in_the_proof_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launches fail here, for want of a GPU: nothing is counted or compared after that."""
    monkeypatch.setattr(gpu_tests, "FILES", ("unit/tools/conftest.py",))
    monkeypatch.setattr(gpu_tests, "_checker", lambda: None)
    monkeypatch.setenv("METAL_EDGE_GPU_ARCHITECTURE", "sm_1")  # nvcc, if there is one, refuses soon
    found = proof.prove(Kernels(table="t"), tmp_path)
    assert found.wrong is not None and "every problem once" in found.wrong
    assert [title for title, _ in found.parts] == ["Tests and checkers"]
    assert "compute-sanitizer: is not installed" in found.parts[0][1]


def test_the_fastest_other_stands_beside_ours() -> None:
    rows = [
        torch_peers.Row("zeroleak", "fp16", 1, "ours", 1e-4, 6.3, 3.0),
        torch_peers.Row("zeroleak", "fp16", 1, "cuDNN", 1e-4, 9.1, 6.0),
        torch_peers.Row("zeroleak", "fp16", 1, "composed", 1e-4, 44.0, 34.0),
        torch_peers.Row("zeroleak", "int8", 1, "ours", 0.5, 5.8, 2.9),
    ]
    lines = torch_peers.table(rows).splitlines()
    assert lines[2].endswith("| 6.30 | 3.00 | cuDNN | 9.10 | 6.00 | 2.00 x as fast |")
    assert lines[3] == "| 1 | zeroleak | int8 | 5.80 | 2.90 | | | | |"
