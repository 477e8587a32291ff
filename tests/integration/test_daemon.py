"""The daemon on a good day: decisions, birth, heartbeat, free run, and a clean end."""

from __future__ import annotations

import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.broker import Listener, busy, wait_until
from support.daemon_process import STATION
from support.tiny_bundle import THRESHOLD, write_dark_video, write_image

if TYPE_CHECKING:
    from conftest import StartDaemon


def test_a_good_part_passes_and_a_bad_one_is_rejected_where_it_is_bad(
    start: StartDaemon, listener: Listener
) -> None:
    start().armed(listener)
    listener.trigger(STATION, "t1", "good")
    listener.trigger(STATION, "t2", "bad")
    good, bad = listener.verdict("t1"), listener.verdict("t2")
    assert (good["verdict"], good["reason"], good["part_id"]) == ("pass", "ok", "good")
    assert good["frame_id"] == "good.png"
    assert good["score"] == pytest.approx(0.2, abs=1e-3)
    assert good["threshold"] == THRESHOLD
    assert good["regions"] == []
    assert (bad["verdict"], bad["reason"]) == ("reject", "score_at_or_above_threshold")
    (region,) = bad["regions"]
    assert (region["x"], region["y"], region["width"], region["height"]) == (8, 8, 8, 8)
    assert bad["seq"] == good["seq"] + 1


def test_a_decision_says_when_by_what_and_for_whom(start: StartDaemon, listener: Listener) -> None:
    state = start().armed(listener)
    before = time.time_ns()
    listener.trigger(STATION, "t1", "good", deadline_ms=1500)
    decision = listener.wait("decision")
    data = decision.data
    model = listener.wait("model")
    assert (decision.qos, decision.retain) == (0, False)
    assert decision.expiry in (0, 1)
    assert data["session_id"] == state["session_id"]
    assert data["model"] == {key: model.data[key] for key in ("id", "version", "sha256")}
    assert before <= data["t_exposure_ns"] <= data["t_publish_ns"] <= time.time_ns()
    assert 0 < data["deadline_ns"] - before < 1.6e9
    for name in ("t_exposure", "t_publish", "deadline"):
        stamp = datetime.fromisoformat(data[name]).timestamp()
        assert stamp == pytest.approx(data[f"{name}_ns"] / 1e9, abs=2e-6)
    assert set(data["latency_ms"]) == {"grab", "infer", "post"}
    assert data["clock"]["source"] == "arrival"
    event = listener.wait("event")
    assert event.qos == 1
    assert uuid.UUID(event.data["event_id"]).version == 5
    assert {**data, "decision_sent": True, "evidence": None} == event.data


def test_birth_model_and_config_are_retained_and_heartbeats_go_on(
    start: StartDaemon, listener: Listener, broker: object
) -> None:
    state = start().armed(listener)
    with Listener(broker) as late:  # type: ignore[arg-type]
        for name in ("state", "model", "config"):
            heard = late.wait(name)
            assert heard.retain
            assert heard.data["session_id"] == state["session_id"]
        beats = wait_until(lambda: late.all("heartbeat")[:4][3:] and late.all("heartbeat"), "beats")
        numbers = [beat.data["seq"] for beat in beats]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert not any(beat.retain for beat in beats)
        last = late.wait("heartbeat", lambda h: h.data["puback_age_ms"] is not None).data
        assert last["healthy"] is True
        assert last["puback_age_ms"] < 1000


def test_the_sender_gets_an_answer_and_a_repeated_trigger_gets_no_second_verdict(
    start: StartDaemon, listener: Listener
) -> None:
    start().armed(listener)
    listener.trigger(STATION, "t1", "good")
    listener.trigger(STATION, "t1", "good")
    listener.trigger(STATION, "t2", "good")
    listener.verdict("t2")
    wait_until(lambda: len(listener.all("replies")) == 3, "three answers")
    answers = [(h.correlation, h.data["status"], h.data["reason"]) for h in listener.all("replies")]
    assert answers == [
        (b"t1", "accepted", None),
        (b"t1", "refused", "duplicate_trigger"),
        (b"t2", "accepted", None),
    ]
    assert [h.data["trigger_id"] for h in listener.all("decision")] == ["t1", "t2"]


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b"", "trigger_id"),
        (b'{"trigger_id": "t1", "trigger_id": "t2", "part_id": "p"}', "repeated"),
        (b"[" * 4000, "JSON"),
        (b"{}" + b" " * 5000, "bytes"),
        (b'{"trigger_id": "t0"}', "part_id"),
        (b'{"trigger_id": "../x", "part_id": "p"}', "trigger_id"),
        (b'{"trigger_id": "t", "part_id": "p", "deadline_ms": NaN}', "deadline_ms"),
        (b'{"trigger_id": "t", "part_id": "p", "deadline": 5}', "deadline"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_a_malformed_command_is_refused_and_the_line_goes_on(
    start: StartDaemon, listener: Listener, payload: bytes, word: str
) -> None:
    start().armed(listener)
    listener.command(STATION, payload, b"c")
    answer = listener.wait("replies")
    assert answer.data["status"] == "refused"
    assert word in answer.data["reason"]
    listener.trigger(STATION, "t1", "good")
    assert listener.verdict("t1")["verdict"] == "pass"


def test_nobody_can_make_the_daemon_answer_on_its_own_topics(
    start: StartDaemon, listener: Listener
) -> None:
    start().armed(listener)
    listener.command(STATION, b"{}", b"c", response=f"{STATION}/decision")
    listener.trigger(STATION, "t1", "good")
    listener.verdict("t1")
    assert len(listener.all("decision")) == 1


def test_sigterm_ends_within_two_seconds_with_an_offline_state(
    start: StartDaemon, listener: Listener
) -> None:
    daemon = start()
    state = daemon.armed(listener)
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < busy(2)
    last = listener.wait("state", lambda h: h.data["status"] == "offline").data
    assert (last["session_id"], last["problems"]) == (state["session_id"], ["stopped"])


def test_sigterm_answers_the_waiting_triggers(
    start: StartDaemon, listener: Listener, line: Path, tmp_path: Path
) -> None:
    """A camera without frames holds the first part; the others wait in the queue."""
    write_dark_video(tmp_path / "end.avi", frames=1)
    video = {"kind": "video", "uri": "end.avi", "timeout_s": 30, "fps": 0.01}
    daemon = start(camera=video, decision={"deadline_ms": 60000})
    daemon.armed(listener)
    for number in range(3):
        listener.trigger(STATION, f"t{number}", "p")
    wait_until(lambda: len(listener.all("replies")) == 3, "three answers")
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < busy(2)
    reasons = [listener.verdict(f"t{number}")["reason"] for number in range(3)]
    assert reasons == ["shutting_down"] * 3


def test_free_run_shows_every_picture_of_the_folder_and_ends_cleanly(
    start: StartDaemon, listener: Listener
) -> None:
    daemon = start(camera={"mode": "latest", "fps": 5})
    assert daemon.exit_code() == 0
    listener.wait("state", lambda h: h.data["problems"] == ["stopped"])
    decisions = [(h.data["frame_id"], h.data["verdict"]) for h in listener.all("decision")]
    assert decisions == [("bad.png", "reject"), ("good.png", "pass")]


def test_heartbeats_go_on_in_free_run(start: StartDaemon, listener: Listener) -> None:
    """Frames that come faster than beats must not crowd the beats out."""
    start(camera={"mode": "latest", "fps": 200, "loop": True}).armed(listener)
    listener.wipe()
    wait_until(lambda: len(listener.all("heartbeat")) >= 6, "six beats")
    assert len(listener.all("decision")) > 20


def test_a_video_file_is_a_camera(start: StartDaemon, listener: Listener, line: Path) -> None:
    write_dark_video(line / "part.avi", frames=20)
    video = {"kind": "video", "uri": "part.avi", "fps": 20, "loop": True}
    start(camera=video).armed(listener)
    for number in range(3):
        listener.trigger(STATION, f"t{number}", "p")
    verdicts = [listener.verdict(f"t{number}") for number in range(3)]
    assert [v["verdict"] for v in verdicts] == ["pass"] * 3
    assert len({v["frame_id"] for v in verdicts}) == 3


def test_a_folder_without_loop_runs_out_of_pictures(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    start().armed(listener)
    for number in range(3):
        listener.trigger(STATION, f"t{number}", "somebody")
    assert [listener.verdict(f"t{n}")["frame_id"] for n in range(3)] == [
        "bad.png",
        "good.png",
        None,
    ]
    assert listener.verdict("t2")["reason"] == "no_frame"


def test_a_picture_of_another_size_is_unknown(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    write_image(line / "images" / "wide.png", 0, size=(64, 32))
    start().armed(listener)
    listener.trigger(STATION, "t1", "wide")
    assert listener.verdict("t1")["reason"] == "wrong_frame_size"
