"""A daemon with several cameras that look at the same part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.broker import Broker, Listener
from support.daemon_process import STATION, Daemon, write_settings
from support.tiny_bundle import build_bundle, write_image

VIEWS = """
[[views]]
kind = "folder"
uri = "side"
camera_id = "side"
bundle = "strict"
timeout_s = 1.0

[[views]]
kind = "video"
uri = "still.avi"
camera_id = "below"
bundle = "bundle"
fps = {fps}
loop = true
timeout_s = 1.0
"""


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """Three views: two folders with pictures of the same parts, and a video; two bundles."""
    from support.tiny_bundle import write_dark_video

    build_bundle(tmp_path / "bundle")
    build_bundle(tmp_path / "strict", threshold=0.3)
    for folder, bad in (("images", "front"), ("side", "flank")):
        (tmp_path / folder).mkdir()
        for part in ("good", "front", "flank", "grey"):
            spot = 8 if part == bad else 0
            write_image(tmp_path / folder / f"{part}.png", 100 if part == "grey" else 51, spot=spot)
    write_dark_video(tmp_path / "still.avi", frames=5)
    return tmp_path


@pytest.fixture
def daemons(line: Path, broker: Broker) -> Iterator[Any]:
    with ExitStack() as stack:

        def start(fps: float = 20) -> Daemon:
            config = write_settings(line / "line.toml", broker)
            text = config.read_text(encoding="utf-8") + VIEWS.format(fps=fps)
            config.write_text(text, encoding="utf-8")
            return stack.enter_context(Daemon(config))

        yield start


def test_views_are_joined_and_each_is_held_against_its_own_bundle(
    daemons: Any, listener: Listener
) -> None:
    daemons().armed(listener)
    parts = ("good", "front", "flank", "grey")
    for part in parts:
        listener.trigger(STATION, part, part)
    found = {part: listener.verdict(part) for part in parts}
    assert {part: (d["verdict"], d["camera_id"]) for part, d in found.items()} == {
        "good": ("pass", "side"),  # the one nearest to its threshold
        "front": ("reject", "cam0"),
        "flank": ("reject", "side"),
        "grey": ("reject", "side"),
    }
    views = found["grey"]["views"]
    assert [(v["camera_id"], v["verdict"], v["threshold"]) for v in views] == [
        ("cam0", "pass", 0.5),
        ("side", "reject", 0.3),
        ("below", "pass", 0.5),
    ]
    assert [d.data["trigger_id"] for d in listener.all("decision")] == list(parts)


def test_a_view_without_a_frame_makes_the_part_unknown_and_the_heart_beats_on(
    daemons: Any, listener: Listener, line: Path
) -> None:
    """The video stands still, so it never shows a part after its trigger."""
    daemons(fps=0.01).armed(listener)
    listener.wipe()
    listener.trigger(STATION, "t1", "good", deadline_ms=700)
    decision = listener.verdict("t1")
    assert (decision["verdict"], decision["reason"]) == ("unknown", "view_missing")
    assert {v["camera_id"]: v["verdict"] for v in decision["views"]} == {
        "cam0": "pass",
        "side": "pass",
        "below": "unknown",
    }
    assert len(listener.all("heartbeat")) >= 2
    listener.trigger(STATION, "t2", "flank", deadline_ms=700)
    assert listener.verdict("t2")["verdict"] == "reject"
