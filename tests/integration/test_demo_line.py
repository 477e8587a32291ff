"""The demo's live half: real broker, real daemon, real PLC process, a bundle without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_bundle import build_bundle, write_image

from metal_edge.demo.line import LinePlan, run_line
from metal_edge.demo.summary import read_gate_log, summarise
from metal_edge.errors import MetalEdgeError


def plan(folder: Path, ids: tuple[str, ...]) -> LinePlan:
    camera = f'kind = "folder"\nuri = {json.dumps(str(folder / "camera"))}\n'
    return LinePlan(folder / "line", folder / "bundle", camera, ids, 200.0, 180.0)


def test_parts_run_past_camera_and_gate(tmp_path: Path) -> None:
    """P-1 and P-3 are good, P-2 has a bright spot, P-4 has no picture and must not pass."""
    build_bundle(tmp_path / "bundle")
    (tmp_path / "camera").mkdir()
    for part, spot in (("P-1", 0), ("P-2", 8), ("P-3", 0)):
        write_image(tmp_path / "camera" / f"{part}.png", 51, spot=spot)
    done: list[int] = []
    line = plan(tmp_path, ("P-1", "P-2", "P-3", "P-4"))
    run_line(line, lambda count, _: done.append(count))
    log = read_gate_log(line.gate_log)
    assert [entry["gate"] for entry in log] == ["pass", "reject", "pass", "reject"]
    assert log[3]["verdict"] == "unknown"
    assert done == [1, 2, 3, 4]
    summary = summarise(log, lambda part: "spot" if part == "P-2" else None)
    assert (summary.escapes, summary.unproven, summary.unknown) == (0, 0, 1)


def test_a_daemon_that_cannot_start_is_named_by_its_log(tmp_path: Path) -> None:
    (tmp_path / "camera").mkdir()
    with pytest.raises(MetalEdgeError, match=r"daemon\.log"):
        run_line(plan(tmp_path, ("P-1",)), lambda *_: None)
