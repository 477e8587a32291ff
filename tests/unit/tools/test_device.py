"""The device check: what it compares, what it prints, and that it refuses without a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metal_edge.domain import Inspection
from metal_edge.runtime.tensorrt_load import missing_for_tensorrt
from tools.device import __main__ as command
from tools.device.agreement import Agreement, compare
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
        Engine("fp16", None, 12_300_000, 61.0, same, Latency(2, 3, 300)),
        Engine("int8", None, 9_000_000, 70.0, flipped, Latency(1, 2, 300)),
        Engine("fp32", failure="TensorRT cannot build it"),
    ]
    report = Report({"GPU": "Orin"}, "metal", Latency(9, 10, 300), engines, "make", "2026-01-02T03")
    text = render(report)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert [engine.passed for engine in engines] == [True, False, False]
    assert rows["TensorRT fp16"].endswith("| 0 of 44 | ok |")
    assert rows["TensorRT int8"].endswith("| 1 of 44 | FAILED |")
    assert rows["TensorRT fp32"].endswith("| FAILED |")
    assert "* fp32: TensorRT cannot build it" in text
    cells = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(cells) == 1


@pytest.mark.skipif(missing_for_tensorrt() is None, reason="this machine can run TensorRT")
def test_without_a_gpu_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--out", str(tmp_path / "out")]) == 69
    assert "needs TensorRT on an NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
