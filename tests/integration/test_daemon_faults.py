"""The daemon on a bad day: nothing doubtful passes, and the line goes on."""

from __future__ import annotations

import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.broker import Broker, Listener, wait_until
from support.daemon_process import STATION
from support.tiny_bundle import DARK, build_bundle, write_dark_video, write_image

if TYPE_CHECKING:
    from conftest import StartDaemon


def test_a_picture_that_is_gone_or_corrupt_is_unknown_and_the_line_goes_on(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    images = line / "images"
    write_image(images / "gone.png", 0)
    write_image(images / "half.png", 0)
    whole = (images / "half.png").read_bytes()
    (images / "half.png").write_bytes(whole[: len(whole) // 2])
    start().armed(listener)
    (images / "gone.png").unlink()
    for part in ("gone", "half", "good"):
        listener.trigger(STATION, part, part)
    gone, half = listener.verdict("gone"), listener.verdict("half")
    assert (gone["verdict"], gone["reason"]) == ("unknown", "camera_failed")
    assert (half["verdict"], half["reason"]) == ("unknown", "camera_failed")
    assert half["score"] is None
    assert listener.verdict("good")["verdict"] == "pass"


@pytest.mark.parametrize("fault", ["nan_map", "nan_score"])
def test_a_model_that_says_nan_never_passes_anything(
    start: StartDaemon, listener: Listener, line: Path, fault: str
) -> None:
    build_bundle(line / "nan", fault=fault)
    write_image(line / "images" / "dark.png", DARK)
    start(bundle="nan").armed(listener)
    for part in ("good", "dark"):
        listener.trigger(STATION, part, part)
    doubtful = listener.verdict("good")
    assert (doubtful["verdict"], doubtful["reason"]) == ("unknown", "not_finite")
    assert doubtful["score"] is None
    assert listener.verdict("dark")["verdict"] == "pass"


def test_inference_that_fails_again_and_again_degrades_the_line_until_it_works(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    build_bundle(line / "failing", fault="fails")
    write_image(line / "images" / "dark.png", DARK)
    start(bundle="failing").armed(listener)
    for number in range(3):
        listener.trigger(STATION, f"t{number}", "good")
        assert listener.verdict(f"t{number}")["reason"] == "inference_failed"
    state = listener.wait("state", lambda h: h.data["status"] == "degraded").data
    assert state["problems"] == ["inference"]
    assert listener.wait("heartbeat", lambda h: not h.data["healthy"])
    listener.wipe()
    # The part that proves that it works again is not let go yet.
    listener.trigger(STATION, "t8", "dark")
    assert listener.verdict("t8")["reason"] == "line_held"
    listener.wait("state", lambda h: h.data["status"] == "online")
    listener.trigger(STATION, "t9", "dark")
    assert listener.verdict("t9")["verdict"] == "pass"


def test_more_triggers_than_the_queue_holds_are_unknown_at_once(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    """A video that stands still holds the first part; the queue takes two more."""
    write_dark_video(line / "still.avi", frames=1)
    video = {"kind": "video", "uri": "still.avi", "fps": 0.01, "timeout_s": 3}
    start(camera=video, decision={"trigger_queue": 2, "deadline_ms": 4000}).armed(listener)
    listener.trigger(STATION, "t0", "p")
    listener.wait("replies")
    # The loop must have taken the first one before the queue is filled.
    listener.wait("heartbeat", lambda h: h.data["queue_depth"] == 0 and h.at > time.monotonic() - 1)
    for number in range(1, 6):
        listener.trigger(STATION, f"t{number}", "p")
    overflown = [listener.verdict(f"t{number}", 1.0) for number in (3, 4, 5)]
    assert {v["reason"] for v in overflown} == {"queue_overflow"}
    assert {v["verdict"] for v in overflown} == {"unknown"}
    late = [listener.verdict(f"t{number}") for number in (0, 1, 2)]
    assert {v["verdict"] for v in late} == {"unknown"}
    decided = [h.data["trigger_id"] for h in listener.all("decision")]
    assert sorted(decided) == [f"t{number}" for number in range(6)]
    numbers = [h.data["seq"] for h in listener.all("decision")]
    assert numbers == list(range(1, 7))


def test_a_deadline_that_has_passed_is_unknown(start: StartDaemon, listener: Listener) -> None:
    start().armed(listener)
    listener.trigger(STATION, "t1", "good", deadline_ms=0.001)
    verdict = listener.verdict("t1")
    assert (verdict["verdict"], verdict["reason"]) == ("unknown", "deadline_missed")


def test_heartbeats_go_on_while_the_camera_is_silent(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    write_dark_video(line / "still.avi", frames=1)
    video = {"kind": "video", "uri": "still.avi", "fps": 0.01, "timeout_s": 2}
    start(camera=video).armed(listener)
    listener.trigger(STATION, "t1", "p")
    assert listener.verdict("t1")["reason"] == "no_frame"
    times = [h.at for h in listener.all("heartbeat")]
    assert len(times) >= 8
    assert max(b - a for a, b in pairwise(times)) < 0.6


def test_kill_9_leaves_the_last_will(start: StartDaemon, listener: Listener) -> None:
    daemon = start()
    state = daemon.armed(listener)
    daemon.process.send_signal(signal.SIGKILL)
    last = listener.wait("state", lambda h: h.data["status"] == "offline").data
    assert last["session_id"] == state["session_id"]
    assert last["problems"] == ["connection lost"]


def test_a_daemon_that_hangs_stops_its_heartbeat_and_a_new_one_takes_over(
    start: StartDaemon, listener: Listener
) -> None:
    hung = start()
    first = hung.armed(listener)
    hung.process.send_signal(signal.SIGSTOP)
    listener.wipe()
    second = start().armed(listener)
    assert second["session_id"] != first["session_id"]
    # The old will comes before the new birth, so `online` is what stays retained.
    assert [h.data["status"] for h in listener.all("state")] == ["offline", "online"]


def test_a_broker_that_dies_and_returns_gets_events_but_no_old_decision(
    start: StartDaemon, line: Path, broker: Broker
) -> None:
    """Free run goes on deciding while the broker is away."""
    daemon = start(camera={"mode": "latest", "fps": 20, "loop": True})
    with Listener(broker) as listener:
        state = daemon.armed(listener)
        listener.wait("decision")
        # It freezes before it dies: so some events are sent, and acknowledged by nobody.
        broker.pause()
        wait_until(lambda: daemon.log.count("sent=False") > 5, "decisions held back")
        broker.kill()
        wait_until(lambda: daemon.log.count("sent=False") > 40, "decisions while offline")
        before = {h.data["seq"] for h in listener.all("event")}
        listener.wipe()
        back_ns = time.time_ns()
        with daemon.frozen():  # so that the listener is back before the first message
            broker.start()
            listener.wait_subscribed()
        born = listener.wait("state", lambda h: h.data["status"] != "offline", 15).data
        assert born["session_id"] == state["session_id"]
        listener.wait("model")
        unsent = listener.wait("event", lambda h: not h.data["decision_sent"]).data
        assert unsent["t_publish_ns"] < back_ns
        listener.wait("state", lambda h: h.data["status"] == "online")
        listener.wait("decision")
        assert [h for h in listener.all("decision") if h.data["t_publish_ns"] < back_ns] == []
        assert [h for h in listener.all("heartbeat") if h.data["t_publish_ns"] < back_ns] == []
        last_seq = listener.all("decision")[-1].data["seq"]
        listener.wait("event", lambda h: h.data["seq"] >= last_seq)
        heard = before | {h.data["seq"] for h in listener.all("event")}
        assert sorted(set(range(1, last_seq + 1)) - heard) == []


def test_a_broker_that_hangs_gets_no_decisions_and_the_line_says_degraded(
    start: StartDaemon, broker: Broker, line: Path
) -> None:
    daemon = start(camera={"mode": "latest", "fps": 10, "loop": True}, mqtt={"keepalive_s": 2})
    with Listener(broker) as listener:
        daemon.armed(listener)
        listener.wait("decision")
        broker.pause()
        wait_until(lambda: "sent=False" in daemon.log, "a decision held back")
        wait_until(lambda: "the line is degraded: broker" in daemon.log, "degraded")
        wait_until(lambda: "connection to the broker lost" in daemon.log, "the connection given up")
        before, _, _ = daemon.log.partition("connection to the broker lost")
        assert before.count("sent=False") > 5
        broker.resume()
        wait_until(lambda: "the line is online" in daemon.log, "recovery")
        since = time.time_ns()
        fresh = listener.wait("decision", lambda h: h.data["t_publish_ns"] > since)
        assert fresh.data["verdict"] in ("pass", "reject")


def test_a_full_event_queue_drops_the_oldest_and_counts(
    start: StartDaemon, broker: Broker, line: Path
) -> None:
    more = {"mqtt": {"event_queue": 5}}
    daemon = start(camera={"mode": "latest", "fps": 50, "loop": True}, **more)
    with Listener(broker) as listener:
        daemon.armed(listener)
        broker.kill()
        wait_until(lambda: daemon.log.count("sent=False") > 40, "decisions while offline")
        listener.wipe()
        with daemon.frozen():  # so that the listener is back before the first message
            broker.start()
            listener.wait_subscribed()
        beat = listener.wait("heartbeat").data
        assert beat["events_dropped"] > 20
        assert "outbox: events dropped" in beat["problems"]
        assert "outbox: events dropped" in daemon.log
        listener.wait("event", lambda h: h.data["decision_sent"])
        kept = [h.data["seq"] for h in listener.all("event") if not h.data["decision_sent"]]
        # Those in flight when the broker died come on top of the queue's five.
        assert 5 <= len(kept) < 25
        assert kept[-5:] == list(range(kept[-1] - 4, kept[-1] + 1)), "not the newest"


def test_denied_topics_are_loud(start: StartDaemon, tmp_path: Path, line: Path) -> None:
    from support.daemon_process import Daemon, write_settings

    folder = tmp_path / "strict"
    folder.mkdir()
    acl = folder / "acl"
    acl.write_text(f"topic readwrite #\ntopic deny {STATION}/event\n", encoding="utf-8")
    acl.chmod(0o600)
    with (
        Broker(folder, f"allow_anonymous true\nacl_file {acl}") as strict,
        Listener(strict) as ears,
    ):
        config = write_settings(line / "strict.toml", strict)
        with Daemon(config) as daemon:
            daemon.armed(ears)
            ears.trigger(STATION, "t1", "good")
            ears.verdict("t1")
            state = ears.wait("state", lambda h: h.data["status"] == "degraded").data
            assert state["problems"] == ["denied: event"]
            assert "denies" in daemon.log
