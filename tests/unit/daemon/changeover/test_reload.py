"""What SIGHUP may change, and the names of what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from metal_edge.daemon.changeover.reload import needs_restart
from metal_edge.settings import LineSettings

SIDE = {"kind": "folder", "camera_id": "side", "bundle": "side"}


def settings(**changes: Any) -> LineSettings:
    values: dict[str, Any] = {"bundle": "a", "camera": {"kind": "folder"}, "views": [SIDE]}
    return LineSettings(**{**values, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle": "b"},
        {"regions": {"min_area_px": 9}},
        {"recipes": {"cap": {"bundle": "cap"}}},
        {"gate": {"offset_ms": 300}},
        {"decision": {"deadline_ms": 100, "max_frame_age_ms": 50}},
        {"views": [{**SIDE, "bundle": "other", "regions": {"min_area_px": 3}}]},
    ],
)
def test_what_decides_may_change(changes: dict[str, Any]) -> None:
    assert needs_restart(settings(), settings(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        (
            {"camera": {"kind": "folder", "timeout_s": 3, "fps": 5}},
            ["camera.fps", "camera.timeout_s"],
        ),
        ({"mqtt": {"host": "other"}}, ["mqtt.host"]),
        ({"decision": {"trigger_queue": 3, "deadline_ms": 9}}, ["decision.trigger_queue"]),
        ({"heartbeat_hz": 2}, ["heartbeat_hz"]),
        ({"views": []}, ["views"]),
        ({"views": [{**SIDE, "fps": 3, "bundle": "other"}]}, ["views.side.fps"]),
        ({"station": {"line": "x"}, "bundle": "b"}, ["station.line"]),
    ],
)
def test_what_is_connected_may_not(changes: dict[str, Any], keys: list[str]) -> None:
    assert needs_restart(settings(), settings(**changes)) == keys


def test_every_section_is_either_free_or_fixed_on_purpose() -> None:
    """A new section is fixed until somebody says otherwise; this test is where it is said."""
    free = {"bundle", "regions", "recipes", "gate", "decision", "views"}
    fixed = {
        *("station", "camera", "mqtt", "runtime", "outbox", "evidence", "metrics", "log"),
        *("sparkplug", "heartbeat_hz"),
    }
    assert free | fixed == LineSettings.model_fields.keys()
