"""What goes over the wire: topics, and JSON payloads as plain dictionaries. Pure.

Times are ISO 8601 in UTC with microseconds for people, and the same instant as an integer of
nanoseconds (`*_ns`) for programs. JSON has no NaN: a number that is not finite becomes null.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from metal_edge.bundle import Bundle
from metal_edge.daemon.clock import ClockState
from metal_edge.domain import Decision, Gate, Region
from metal_edge.settings import CameraSettings, LineSettings

SCHEMA = 1
# RFC 9562 version 5: the same decision of the same session always has the same event id.
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:metal-edge:event")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks: constant for one run of the daemon."""

    topic_root: str
    session_id: str
    camera_id: str
    model_id: str
    model_version: str
    model_sha256: str
    backend: str


@dataclass(frozen=True, slots=True)
class Now:
    """One instant on both clocks, in nanoseconds."""

    mono_ns: int
    utc_ns: int

    def to_utc_ns(self, mono_ns: int) -> int:
        """Another monotonic instant on the wall clock, as it stands now."""
        return self.utc_ns + (mono_ns - self.mono_ns)


def encode(payload: dict[str, Any]) -> bytes:
    """Compact UTF-8 JSON. Raises ValueError rather than write NaN."""
    return json.dumps(payload, allow_nan=False, separators=(",", ":")).encode()


def extended(encoded: bytes, **more: Any) -> bytes:
    """An encoded object with further fields at its end; what is there is not encoded again.

    Args:
        encoded: of `encode`, with at least one field and none of the names in `more`.
    """
    return encoded[:-1] + b"," + encode(more)[1:]


def iso_utc(utc_ns: int) -> str:
    """`2026-01-31T12:00:00.000001Z`, cut to microseconds."""
    seconds, nanos = divmod(utc_ns, 1_000_000_000)
    stamp = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanos // 1000)
    return stamp.isoformat(timespec="microseconds").replace("+00:00", "Z")


def event_id(topic_root: str, session_id: str, trigger_id: str, seq: int) -> str:
    """UUIDv5 of station, session, trigger and decision: a receiver can drop a copy it has.

    The trigger alone would not do: a PLC's counter of 16 bits comes round within a session, and
    the later part's event would be taken for a copy of the first one's.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{topic_root}/{session_id}/{trigger_id}/{seq}"))


def decision_payload(
    decision: Decision, identity: Identity, now: Now, clock: ClockState
) -> dict[str, Any]:
    """Payload of `decision`; `event` repeats it."""
    exposure = decision.t_exposure_utc_ns
    deadline = now.to_utc_ns(decision.trigger.deadline_mono_ns)
    trigger_id, seq = decision.trigger.trigger_id, decision.seq
    return {
        "schema": SCHEMA,
        "event_id": event_id(identity.topic_root, identity.session_id, trigger_id, seq),
        "session_id": identity.session_id,
        "seq": seq,
        "part_id": decision.trigger.part_id,
        "trigger_id": trigger_id,
        "frame_id": decision.frame_id,
        "camera_id": decision.camera_id or identity.camera_id,
        "verdict": decision.verdict.value,
        "reason": str(decision.reason),
        "score": finite(decision.score),
        "threshold": finite(decision.threshold),
        "regions": [_region(region) for region in decision.regions],
        "t_exposure": None if exposure is None else iso_utc(exposure),
        "t_exposure_ns": exposure,
        "t_publish": iso_utc(now.utc_ns),
        "t_publish_ns": now.utc_ns,
        "deadline": iso_utc(deadline),
        "deadline_ns": deadline,
        "encoder": decision.trigger.encoder,
        "gate": _gate(decision.trigger.gate, now),
        "views": [_view(view) for view in decision.views],
        "clock": {
            "source": None if decision.time_source is None else decision.time_source.value,
            "offset_us": clock.offset_us,
            "synced": clock.synced,
        },
        "latency_ms": {key: finite(value) for key, value in decision.latency_ms.items()},
        "model": {
            "id": identity.model_id,
            "version": identity.model_version,
            "sha256": identity.model_sha256,
        },
        "backend": identity.backend,
    }


def _gate(gate: Gate | None, now: Now) -> dict[str, Any] | None:
    """Where the PLC meets this part again; null when the settings do not say."""
    if gate is None:
        return None
    t_gate = None if gate.t_mono_ns is None else now.to_utc_ns(gate.t_mono_ns)
    return {
        "offset_ms": gate.offset_ms,
        "encoder_counts": gate.encoder_counts,
        "t_gate": None if t_gate is None else iso_utc(t_gate),
        "t_gate_ns": t_gate,
        "encoder_gate": gate.encoder,
    }


def _view(view: Decision) -> dict[str, Any]:
    """One camera's say in a joined decision."""
    return {
        "camera_id": view.camera_id,
        "frame_id": view.frame_id,
        "verdict": view.verdict.value,
        "reason": str(view.reason),
        "score": finite(view.score),
        "threshold": finite(view.threshold),
        "regions": [_region(region) for region in view.regions],
        "t_exposure_ns": view.t_exposure_utc_ns,
        "latency_ms": {key: finite(value) for key, value in view.latency_ms.items()},
    }


def _region(region: Region) -> dict[str, Any]:
    return {
        "x": region.x,
        "y": region.y,
        "width": region.width,
        "height": region.height,
        "area": region.area,
        "peak": finite(region.peak),
    }


def state_payload(
    status: str, identity: Identity, utc_ns: int | None, problems: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Payload of `state`. The last will has no time: the broker sends it, whenever that is."""
    return {
        "schema": SCHEMA,
        "session_id": identity.session_id,
        "status": status,
        "problems": list(problems),
        "t_publish": None if utc_ns is None else iso_utc(utc_ns),
        "t_publish_ns": utc_ns,
    }


def model_payload(
    bundle: Bundle, identity: Identity, golden_difference: float, utc_ns: int, recipe: str
) -> dict[str, Any]:
    """Payload of `model`: what decides, and the promise its threshold carries."""
    manifest = bundle.manifest
    described = manifest.model_dump(mode="json")
    return {
        "schema": SCHEMA,
        "session_id": identity.session_id,
        "t_publish": iso_utc(utc_ns),
        "recipe": recipe,
        "id": identity.model_id,
        "version": identity.model_version,
        "sha256": identity.model_sha256,
        "created": manifest.created_utc,
        "precision": manifest.precision,
        "backend": manifest.backend,
        "preprocess": described["preprocess"],
        "thresholds": bundle.thresholds.model_dump(mode="json"),
        "golden": {
            "images": len(bundle.golden.images),
            "tolerance": bundle.golden.tolerance,
            "worst_difference": finite(golden_difference),
        },
    }


def config_payload(settings: LineSettings, identity: Identity, utc_ns: int) -> dict[str, Any]:
    """Payload of `config`: a list of what may be seen, so that no secret slips out.

    The camera's URI and options may hold a password; they count in the digest only.
    """
    everything = settings.model_dump_json().encode()
    return {
        "schema": SCHEMA,
        "session_id": identity.session_id,
        "t_publish": iso_utc(utc_ns),
        "sha256": hashlib.sha256(everything).hexdigest(),
        "camera": _visible(settings.camera),
        "views": [_visible(view) for view in settings.views],
        "regions": settings.regions.model_dump(mode="json"),
        "gate": settings.gate.model_dump(mode="json"),
        "decision": settings.decision.model_dump(mode="json"),
        "runtime": settings.runtime.model_dump(mode="json"),
        "recipes": sorted(settings.recipes),
        "echo_timeout_s": settings.mqtt.echo_timeout_s,
        "heartbeat_hz": settings.heartbeat_hz,
    }


def _visible(camera: CameraSettings) -> dict[str, Any]:
    hidden = {"uri", "options", "bundle", "regions"}
    return camera.model_dump(mode="json", exclude=hidden)


def finite(value: float | None) -> float | None:
    """The number, or None where JSON has no way to say it."""
    return value if value is not None and math.isfinite(value) else None
