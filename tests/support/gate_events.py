"""The daemon's messages as the gate's tests send them."""

from __future__ import annotations

import json
from typing import Any

from metal_edge.demo.gate import GateSettings

MS = 1_000_000
SETTINGS = GateSettings(heartbeat_timeout_ns=600 * MS, rearm_heartbeats=3)


def decision(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "schema": 1,
        "event_id": "e-1",
        "session_id": "S1",
        "seq": 1,
        "part_id": "P-1",
        "trigger_id": "T-1",
        "frame_id": "f",
        "camera_id": "cam0",
        "verdict": "pass",
        "reason": "below_threshold",
        "score": 0.25,
        "threshold": 0.5,
        "regions": [],
        "t_exposure_ns": 1_700_000_000_000_000_000,
        "t_publish_ns": 1_700_000_000_020_000_000,
        "latency_ms": {"grab": 1.0, "infer": 2.0, "post": 0.5},
    }
    return fields | changes


def raw(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def heartbeat(seq: int, session: str = "S1", healthy: Any = True) -> bytes:
    return raw({"session_id": session, "seq": seq, "healthy": healthy})


def state(session: str = "S1", status: str = "online") -> bytes:
    return raw({"session_id": session, "status": status})
