"""The bench's verdicts, its page, its counting on paper, and its processes."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_bundle import build_bundle, write_image

from metal_edge.bundle import Bundle
from metal_edge.demo.broker import find_mosquitto
from metal_edge.errors import DataError, MetalEdgeError, MissingInputError, UnavailableError
from metal_edge.models.metal import Metal, MetalConfig
from tools.bench import lines, paper
from tools.bench.lines import Detection
from tools.bench.page import circumstances, replace_part, write_part
from tools.bench.processes import time_import, time_start
from tools.bench.timing import has_vnni, one_pinned_thread


def ms(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def test_a_ratio_is_the_median_of_pairs() -> None:
    """A slow spell that hits both sides alike does not move it; a ratio of medians would."""
    slow, fast = ms(2, 2, 20, 20, 20), ms(1, 1, 10, 10, 1)
    assert lines.times_faster(slow, fast) == 2


@given(st.floats(0.1, 10), st.floats(0.01, 100))
def test_speed_is_judged_by_the_ratio_alone(ratio: float, scale: float) -> None:
    fast = ms(1, 2, 3) * scale
    line = lines.int8_speed(fast * ratio, fast, vnni=True)
    measured = lines.times_faster(fast * ratio, fast)
    assert line.reached is (measured >= 1.8)
    assert lines.int8_speed(fast * ratio, fast, vnni=False).verdict == "no verdict"


def test_each_bar_from_both_sides() -> None:
    assert lines.int8_size(100, 30).verdict == "reached"
    assert lines.int8_size(100, 31).verdict == "missed"
    assert lines.against_eager("INT8", ms(20), ms(10)).verdict == "reached"
    assert lines.against_eager("INT8", ms(19), ms(10)).verdict == "missed"
    assert lines.overhead("x", ms(1, 1, 1), ms(1.19, 9, 1.19)).verdict == "reached"  # 0.19 ms
    assert lines.overhead("x", ms(100), ms(104)).verdict == "reached"  # 4 %
    assert lines.overhead("x", ms(2), ms(2.3)).verdict == "missed"
    assert lines.start([1.9, 2.0, 5.0]).verdict == "reached"
    assert lines.start([1.9, 2.1, 2.2]).verdict == "missed"
    assert "worst of 3: 2.20 s" in lines.start([1.9, 2.1, 2.2]).measured
    assert lines.imports([0.5], []).verdict == "reached"
    assert lines.imports([0.6], []).verdict == "missed"
    assert lines.imports([0.1], ["torch"]).verdict == "missed"


def a_match(ours: float, image: float, pixel: float, *, anomalib: bool = True) -> lines.Match:
    """PatchCore takes 60 ms in one back end and 50 in another; its AUROCs are .9 and .95."""
    return lines.Match(
        "fast",
        {"ONNX Runtime": ms(60, 60, 60), "OpenVINO 1": ms(50, 50, 50)},
        ms(ours, ours, ours),
        Detection(0.9, 0.95),
        Detection(image, pixel),
        "anomalib 2.7.0" if anomalib else "stand-in: ours",
        anomalib,
    )


@pytest.mark.parametrize("anomalib", [True, False])
def test_a_rival_is_beaten_in_its_fastest_back_end_at_no_lower_auroc(anomalib: bool) -> None:
    line = lines.against_rival(a_match(10, 0.9, 0.95, anomalib=anomalib), judged=True)
    assert line.verdict == "reached"
    assert "5.00 x (50.00 -> 10.00 ms)" in line.measured
    assert "in OpenVINO 1; in ONNX Runtime 60.00 ms" in line.note
    # 60 / 11 would be enough, 50 / 11 is not.
    missed = lines.against_rival(a_match(11, 0.9, 0.95, anomalib=anomalib), judged=True)
    assert missed.verdict == "missed"
    assert ("stand-in's" in line.bar, "stand-in: ours" in line.note) == (not anomalib,) * 2


@pytest.mark.parametrize(
    ("image", "pixel", "said"),
    [(0.899, 0.95, "image AUROC is"), (0.9, 0.949, "pixel AUROC is"), (0, 0, "image and pixel")],
)
def test_speed_does_not_make_up_for_a_lower_auroc(image: float, pixel: float, said: str) -> None:
    line = lines.against_rival(a_match(1, image, pixel), judged=True)
    assert line.verdict == "missed"
    assert said in line.note


def test_a_network_that_the_bar_is_not_for_only_informs() -> None:
    line = lines.against_rival(a_match(1, 1, 1), judged=False)
    assert line.verdict == "no verdict"
    assert "for information" in line.note


def test_text_and_table_say_the_same() -> None:
    found = [lines.int8_size(100, 30), lines.int8_speed(ms(2), ms(1), vnni=False)]
    text, table = lines.as_text(found), lines.as_markdown(found)
    for line in found:
        for part in (line.what, line.bar, line.measured, line.verdict, line.note):
            assert part in text
            assert part in table
    assert len(table.splitlines()) == 4


def test_a_part_of_the_page_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->\nkeep\n<!-- /y -->\n"
    once = replace_part(page, "x", "new\n")
    assert once == page.replace("old", "new")
    assert replace_part(once, "x", "new") == once
    for broken in ("", "<!-- x -->", "<!-- /x --><!-- x -->", page + page):
        with pytest.raises(DataError, match="no place for x"):
            replace_part(broken, "x", "new")
    with pytest.raises(MissingInputError):
        write_part(tmp_path, "x", "new")
    (tmp_path / "performance.md").write_text(page, encoding="utf-8")
    assert write_part(tmp_path, "y", "z").read_text(encoding="utf-8") == page.replace("keep", "z")


def test_the_committed_page_has_both_places() -> None:
    text = (Path(__file__).parents[3] / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in ("measured", "paper"):
        assert replace_part(text, name, "new") != text
    said = circumstances("a CPU, 2 cores", datetime(2026, 11, 22, tzinfo=UTC), "make bench")
    assert said == "a CPU, 2 cores; 2026-11-22; `make bench`."


def test_one_pinned_thread_is_given_back() -> None:
    before = os.sched_getaffinity(0), torch.get_num_threads()
    with one_pinned_thread():
        assert len(os.sched_getaffinity(0)) == 1
        assert torch.get_num_threads() == 1
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


def test_the_dot_product_is_found_by_name() -> None:
    assert has_vnni("flags : fpu avx512_vnni sse")
    assert has_vnni("Features : fp asimd asimddp")
    assert not has_vnni("flags : fpu avx512f not_avx512_vnni")


def test_costs_on_paper() -> None:
    torch.manual_seed(0)
    model = Metal(MetalConfig(image_size=32, patch_size=8, embedding=16, heads=2)).eval()
    done: list[tuple[int, int]] = []
    found = paper.costs({"small": model}, lambda count, total: done.append((count, total)))
    assert [cost.precision for cost in found] == ["fp32", "fp16", "int8", "int8, TensorRT"]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    fp32, fp16, int8, tensorrt = found
    macs = {sum(cost.traffic.macs.values()) for cost in found}
    assert len(macs) == 1  # a precision changes what a MAC costs, not how many there are
    assert fp32.traffic.macs.keys() == {"fp32"}
    assert fp16.traffic.macs["fp16"] > fp16.traffic.macs["fp32"]
    assert int8.traffic.macs["int8"] == tensorrt.traffic.macs["int8"] > 0
    assert "fp16" not in int8.traffic.macs
    assert tensorrt.traffic.macs["fp16"] > 0
    assert tensorrt.traffic.macs["fp32"] == fp16.traffic.macs["fp32"]
    assert tensorrt.traffic.total_bytes < int8.traffic.total_bytes
    sizes = [sum(cost.traffic.weights.values()) for cost in (fp32, fp16, int8)]
    assert sizes[0] > sizes[1] > sizes[2]
    for cost in found:
        assert 0 < cost.traffic.least_bytes < cost.traffic.total_bytes
    table = paper.as_markdown(found)
    for module in paper.MODULES:
        assert module.source in table
    assert table.count("| small |") == 8


@given(st.integers(1, 10**9))
def test_the_floor_is_bytes_over_bandwidth(count: int) -> None:
    for module in paper.MODULES:
        seconds = paper.floor_ms(count, module) / 1000
        assert seconds * module.bandwidth == pytest.approx(count / 1e9)


def test_the_daemons_modules_come_without_torch() -> None:
    took, heavy = time_import()
    assert 0 < took < 30
    assert heavy == []


@pytest.fixture
def need_mosquitto() -> None:
    try:
        find_mosquitto()
    except UnavailableError:
        pytest.skip("mosquitto is not installed")


@pytest.mark.usefixtures("need_mosquitto")
def test_a_real_daemon_decides(tmp_path: Path) -> None:
    write_image(tmp_path / "part.png", 51)
    bundle = Bundle.open(build_bundle(tmp_path / "tiny.bundle"))
    took = time_start(bundle, tmp_path / "part.png", tmp_path / "line", time.monotonic)
    assert 0 < took < 30
    assert "is armed" in (tmp_path / "line" / "daemon.log").read_text(encoding="utf-8")


@pytest.mark.usefixtures("need_mosquitto")
def test_a_daemon_that_ends_early_is_told(tmp_path: Path) -> None:
    write_image(tmp_path / "part.png", 51)
    path = build_bundle(tmp_path / "tiny.bundle")
    bundle = Bundle.open(path)
    (path / "model.onnx").write_bytes(b"changed")
    begun = time.monotonic()
    with pytest.raises(MetalEdgeError, match=r"ended .*daemon\.log"):
        time_start(bundle, tmp_path / "part.png", tmp_path / "line", time.monotonic)
    assert time.monotonic() - begun < 20
