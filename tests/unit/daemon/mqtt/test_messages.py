"""Payloads: always JSON, never NaN, no secrets, ids that tell copies apart."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.schemas import complaints

from metal_edge.daemon.clock import ClockState, read_clock_state
from metal_edge.daemon.mqtt.messages import (
    Identity,
    Now,
    config_payload,
    decision_payload,
    encode,
    event_id,
    extended,
    iso_utc,
    state_payload,
)
from metal_edge.domain import Decision, Gate, Region, TimeSource, Trigger, Verdict
from metal_edge.settings import CameraSettings, LineSettings, MqttSettings

IDENTITY = Identity(
    "metal/v1/a/b/c/d/e", "session", "cam0", "m", "1", "ab" * 32, "onnxruntime-fp32"
)
CLOCK = ClockState(True, 12.5)
floats = st.floats()

durations = st.floats(0) | st.just(float("nan"))


@example(*[float("nan")] * 4, 0)
@given(floats, floats, floats, durations, st.integers(0, 2**62))
def test_a_decision_is_json_whatever_its_numbers(
    score: float, threshold: float, peak: float, latency: float, utc_ns: int
) -> None:
    gate = Gate(400.0, 5000, 5 + 400_000_000, 4711)
    decision = Decision(
        Verdict.UNKNOWN,
        "not_finite",
        Trigger("t", "p", 5, 1_000_005, encoder=-289, gate=gate),
        3,
        score=score,
        threshold=threshold,
        regions=(Region(1, 2, 3, 4, 5, peak),),
        t_exposure_utc_ns=utc_ns,
        time_source=TimeSource.ARRIVAL,
        latency_ms={"grab": latency},
    )
    joined = replace(decision, views=(decision, replace(decision, camera_id="cam1")))
    payload = decision_payload(joined, IDENTITY, Now(5, utc_ns), CLOCK)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(encode(payload), parse_constant=refuse) == payload
    assert complaints("decision", payload) == []
    assert complaints("event", {**payload, "decision_sent": True}) == []
    assert payload["deadline_ns"] == utc_ns + 1_000_000
    assert payload["verdict"] == "unknown"


@given(
    st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans(), min_size=1),
    st.none() | st.booleans(),
    st.none() | st.dictionaries(st.text(), st.text()),
)
def test_a_payload_extended_is_the_payload_with_more_fields(
    payload: dict[str, Any], sent: bool | None, evidence: dict[str, str] | None
) -> None:
    more = {"decision_sent": sent, "evidence": evidence}
    shared = {key: value for key, value in payload.items() if key not in more} or {"a": 1}
    assert extended(encode(shared), **more) == encode({**shared, **more})


def test_encode_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"score": float("nan")})


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_iso_is_the_same_instant_cut_to_microseconds(utc_ns: int) -> None:
    stamp = datetime.fromisoformat(iso_utc(utc_ns))
    since = stamp - datetime(1970, 1, 1, tzinfo=UTC)
    assert (since.days * 86400 + since.seconds) * 10**6 + since.microseconds == utc_ns // 1000
    assert iso_utc(utc_ns).endswith("Z") and len(iso_utc(utc_ns)) == 27


def test_event_ids_differ_by_station_session_trigger_and_number_and_by_nothing_else() -> None:
    first, *others = ("r1", "s1", "t1", 1), ("r2", "s1", "t1", 1), ("r1", "s2", "t1", 1)
    keys = [first, *others, ("r1", "s1", "t2", 1), ("r1", "s1", "t1", 2)]
    ids = [event_id(*key) for key in keys]
    assert len(set(ids)) == len(keys)
    assert ids == [event_id(*key) for key in keys]
    assert {uuid.UUID(value).version for value in ids} == {5}


def test_config_shows_no_secret_but_its_digest_tells_changes_apart() -> None:
    def config(password: str) -> dict[str, object]:
        settings = LineSettings(
            bundle=Path("b"),
            camera=CameraSettings(
                kind="rtsp", uri=f"rtsp://u:{password}@host/x", options={"token": password}
            ),
            mqtt=MqttSettings(username="edge-user", password_file=Path("/secret-file")),
        )
        return config_payload(settings, IDENTITY, 0)

    one, other = config("hunter2"), config("hunter3")
    assert complaints("config", one) == []
    text = encode(one).decode()
    for secret in ("hunter2", "edge-user", "secret-file"):
        assert secret not in text
    assert one["sha256"] != other["sha256"]


def test_a_last_will_has_no_time() -> None:
    will = state_payload("offline", IDENTITY, None, ("connection lost",))
    assert complaints("state", will) == []
    assert (will["t_publish"], will["status"]) == (None, "offline")


def test_the_kernel_tells_about_its_clock() -> None:
    state = read_clock_state()
    assert (state.synced is None) == (state.offset_us is None)
