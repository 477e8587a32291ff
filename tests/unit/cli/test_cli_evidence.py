"""`metal-edge evidence` on a store that the daemon's own code has written."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from support.broker import wait_until
from typer.testing import CliRunner, Result

from metal_edge.cli.app import app
from metal_edge.cli.evidence import moment_ns
from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.records.evidence import Case, EvidenceStore
from metal_edge.daemon.records.evidence_pictures import Shown
from metal_edge.daemon.records.storage import Limits
from metal_edge.errors import SettingsError

NOW_NS = time.time_ns()
HOUR_NS = 3_600_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = EvidenceStore(tmp_path / "kept", Limits(10**15, 10**9), SystemClock(), free_bytes=0)
    store.start()
    for number, part in enumerate(["p1", "../p2", "p1"]):
        decision = {
            "event_id": f"e{number}",
            "part_id": part,
            "trigger_id": f"t{number}",
            "verdict": "reject",
            "reason": "score_at_or_above_threshold",
            "t_publish_ns": NOW_NS - (3 - number) * HOUR_NS,
        }
        image = np.full((8, 9, 3), number, np.uint8)
        heat = np.full((4, 4), 0.5, np.float32)
        store.offer(Case(decision, (Shown("c", image, heat, None, 0.2),)), lambda names: None)
    wait_until(lambda: store.stats().kept == 3, "the pictures")
    store.close(10)
    return tmp_path / "kept"


def called(*words: object) -> Result:
    return CliRunner().invoke(app, ["evidence", *map(str, words)])


def test_parts_are_listed_newest_first(folder: Path) -> None:
    lines = called(folder).stdout.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["p1", "../p2", "p1"]
    assert Path(lines[0].split("  ")[-1]).is_file()


def test_one_part_and_a_time_can_be_asked_for(folder: Path) -> None:
    looks = json.loads(called(folder, "--part", "p1", "--json").stdout)["looks"]
    assert [look["event_id"] for look in looks] == ["e2", "e0"]
    assert set(looks[0]["files"]) == {"raw", "map", "overlay"}
    late = json.loads(called(folder, "--since", "90m", "--json").stdout)["looks"]
    assert [look["event_id"] for look in late] == ["e2"]
    assert len(called(folder, "--limit", 1).stdout.splitlines()) == 1


def test_pictures_are_copied_under_names_that_no_part_chooses(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert called(folder, "--part", "../p2", "-o", out).exit_code == 0
    copies = sorted(out.iterdir())
    assert {path.name.rpartition("-")[2] for path in copies} == {
        "raw.png",
        "map.png",
        "overlay.jpg",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "out"}


@pytest.mark.parametrize(
    ("words", "code"), [(["nowhere"], 66), (["{folder}", "--since", "yesterday"], 78)]
)
def test_what_cannot_be_done_is_said(folder: Path, words: list[str], code: int) -> None:
    result = called(*(word.format(folder=folder) for word in words))
    assert getattr(result.exception, "exit_code", None) == code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", 10**18 - 90 * 60 * 10**9),
        ("12h", 10**18 - 12 * 3600 * 10**9),
        ("3d", 10**18 - 3 * 86400 * 10**9),
        ("1970-01-01T00:01", 60 * 10**9),
        ("1970-01-01T01:01+01:00", 60 * 10**9),
    ],
)
def test_moments(text: str, expected: int) -> None:
    assert moment_ns(text, 10**18) == expected


def test_no_moment() -> None:
    with pytest.raises(SettingsError):
        moment_ns("soon", 0)
