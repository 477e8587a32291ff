"""Audit events that outlive the daemon, its broker, and its disk."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
import pytest
from support.broker import Broker, Listener, wait_until
from support.daemon_process import STATION
from support.small_disk import small_disk
from support.wire import Wire

from metal_edge.daemon.records.evidence import INDEX
from metal_edge.daemon.records.evidence_index import find

if TYPE_CHECKING:
    from conftest import StartDaemon
OUTBOX = {"outbox": {"path": "state/outbox.sqlite"}}
FREE_RUN = {"camera": {"mode": "latest", "fps": 20, "loop": True}}


def session_after(listener: Listener, seen: set[str]) -> str:
    """Waits for a birth that is new."""
    state = listener.wait(
        "state",
        lambda h: h.data["status"] == "online" and h.data["session_id"] not in seen,
        20,
    ).data
    seen.add(state["session_id"])
    return str(state["session_id"])


def delivered(listener: Listener, session: str) -> None:
    """Waits until this session has nothing left to deliver."""
    listener.wait(
        "heartbeat",
        lambda h: h.data["session_id"] == session and h.data["outbox_depth"] == 0,
        20,
    )


def test_kill_9_loses_no_event_of_a_decision_that_was_heard(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    """The broker stays, the daemon is killed in the middle of its work, again and again."""
    seen: set[str] = set()
    for life in range(3):
        daemon = start(**OUTBOX, **FREE_RUN)
        session = session_after(listener, seen)
        listener.wait(
            "decision",
            lambda h, s=session, n=life: h.data["session_id"] == s and h.data["seq"] > 3 + n,
        )
        daemon.process.send_signal(signal.SIGKILL)
        daemon.exit_code()
    start(**OUTBOX)
    delivered(listener, session_after(listener, seen))
    heard = {h.data["event_id"] for h in listener.all("decision")}
    told = {h.data["event_id"] for h in listener.all("event")}
    assert len(heard) >= 4 + 5 + 6
    assert heard - told == set()


def test_events_wait_for_a_broker_that_is_away_even_if_the_daemon_dies_meanwhile(
    start: StartDaemon, broker: Broker, line: Path
) -> None:
    daemon = start(**OUTBOX, **FREE_RUN)
    with Listener(broker) as listener:
        first = daemon.armed(listener)
        broker.kill()
        wait_until(lambda: daemon.log.count("sent=False") > 20, "decisions while offline")
        daemon.process.send_signal(signal.SIGKILL)
        daemon.exit_code()
        unsent = daemon.log.count("sent=False")
        broker.start()
        listener.wait_subscribed()
        listener.wipe()
        start(**OUTBOX)
        delivered(listener, session_after(listener, {first["session_id"]}))
        mine = [h.data for h in listener.all("event")]
    assert {event["session_id"] for event in mine} == {first["session_id"]}
    # The log line comes after the note, so there may be one more event than lines.
    assert len({e["seq"] for e in mine if not e["decision_sent"]}) >= unsent
    numbers = [event["seq"] for event in mine]
    assert numbers == sorted(numbers)


def test_an_orderly_end_delivers_first_and_keeps_what_it_cannot(
    start: StartDaemon, broker: Broker, line: Path
) -> None:
    daemon = start(**OUTBOX, **FREE_RUN)
    with Listener(broker) as listener:
        first = daemon.armed(listener)["session_id"]
        broker.kill()
        wait_until(lambda: daemon.log.count("sent=False") > 5, "decisions while offline")
        assert daemon.stop() == 0
        assert "were not delivered and wait in" in daemon.log
        decided = daemon.log.count(" seq=")
        broker.start()
        listener.wait_subscribed()
        start(**OUTBOX)
        delivered(listener, session_after(listener, {first}))
        assert len({h.data["seq"] for h in listener.all("event")}) == decided


def test_a_damaged_outbox_is_loud_and_the_line_goes_on(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    (line / "state").mkdir()
    (line / "state" / "outbox.sqlite").write_bytes(b"this is no database\n" * 500)
    daemon = start(**OUTBOX)
    state = listener.wait("state", lambda h: h.data["status"] == "degraded").data
    assert state["problems"] == ["outbox: damaged file put aside"]
    listener.trigger(STATION, "t1", "good")
    assert listener.verdict("t1")["verdict"] == "pass"
    listener.wait("event")
    assert "damaged" in daemon.log
    # An audit that is in trouble must not close the gate.
    assert listener.wait("heartbeat", lambda h: h.data["problems"]).data["healthy"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs tmpfs")
def test_a_full_disk_degrades_the_line_and_loses_nothing(
    start: StartDaemon, broker: Broker, line: Path
) -> None:
    """The disk fills up, then the broker goes: everything waits in memory, decisions go on."""
    with small_disk(line / "state", "5m"), Listener(broker) as listener:
        daemon = start(**OUTBOX, **FREE_RUN)
        daemon.armed(listener)
        listener.wait("event")
        filler = line / "state" / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        broker.kill()
        wait_until(lambda: "outbox: disk full" in daemon.log, "the disk to be full")
        wait_until(lambda: daemon.log.count("sent=False") > 20, "decisions while offline")
        with daemon.frozen():
            broker.start()
            listener.wait_subscribed()
        state = listener.wait("state", lambda h: "outbox: disk full" in h.data["problems"], 15)
        assert state.data["status"] == "degraded"
        filler.unlink()
        wait_until(lambda: "outbox: works again" in daemon.log, "the outbox to recover", 40)
        assert daemon.stop() == 0
        decided = daemon.log.count("seq=")
        numbers = {h.data["seq"] for h in listener.all("event")}
        assert numbers == set(range(1, decided + 1))


def test_a_read_only_folder_degrades_the_line_from_the_start(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    folder = line / "state"
    with small_disk(folder, "8m"):
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        start(**OUTBOX)
        state = listener.wait("state", lambda h: h.data["status"] == "degraded").data
        assert state["problems"] == ["outbox: read-only file system"]
        listener.trigger(STATION, "t1", "good")
        assert listener.verdict("t1")["verdict"] == "pass"
        assert listener.wait("event").data["trigger_id"] == "t1"


def test_pictures_of_parts_that_did_not_pass_are_named_by_their_events(
    start: StartDaemon, listener: Listener, line: Path
) -> None:
    folder = line / "kept"
    start(evidence={"keep": "reject", "path": "kept"}, **OUTBOX).armed(listener)
    for part in ("good", "bad"):
        listener.trigger(STATION, part, part)
        listener.verdict(part)
    bad = listener.wait("event", lambda h: h.data["part_id"] == "bad").data
    good = listener.wait("event", lambda h: h.data["part_id"] == "good").data
    assert good["evidence"] is None
    raw = bad["evidence"]["raw"]
    kept = PIL.Image.open(folder / raw[:2] / raw[2:4] / f"{raw}.png")
    camera_saw = PIL.Image.open(line / "images" / "bad.png").convert("RGB")
    assert kept.tobytes() == camera_saw.tobytes()
    (look,) = find(folder / INDEX)
    assert (look.part_id, look.event_id) == ("bad", bad["event_id"])
    assert look.overlay is not None


def test_a_snapshot_keeps_the_next_part_whatever_the_settings_say(
    start: StartDaemon, listener: Listener, broker: Broker, line: Path
) -> None:
    daemon = start(environment={"STATE_DIRECTORY": str(line / "var")})
    daemon.armed(listener)
    with Wire(broker, "#") as wire:
        reply = f"{STATION}/reply/me/snapshot"
        wire.publish(f"{STATION}/cmd/snapshot", b"{}", response=reply, correlation=b"c")
        # A command that comes later is carried out later.
        wire.publish(f"{STATION}/cmd/arm", b"{}", response=f"{reply}/arm", correlation=b"c")
        wire.wait("arm", 2)
    listener.trigger(STATION, "t1", "good")
    event = listener.wait("event").data
    assert event["verdict"] == "pass"
    assert event["evidence"]["raw"] is not None
    listener.trigger(STATION, "t2", "good")
    assert listener.wait("event", lambda h: h.data["trigger_id"] == "t2").data["evidence"] is None
    (outbox,) = (line / "var").glob("station-*/outbox.sqlite")
    assert outbox.is_file()
