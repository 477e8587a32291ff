"""The broker dies, hangs, is cut off, or stays away: no stale decision, no lost event."""

from __future__ import annotations

import signal
import time

import pytest
from conftest import MakeRig, Trial, skip_if_fast
from fault_network import Cable
from rig import Rig, Tail, age_s
from support.broker import Broker, wait_until
from support.tiny_bundle import write_image

# Reconnection backs off from 1 to 5 s with jitter, on both sides; then three heartbeats.
BACK_S = 10.0
# What was in the socket when the broker froze: at most one second's decisions (docs/daemon.md).
IN_SOCKET = 12


@pytest.mark.fault(
    "broker killed",
    "kill -9 of mosquitto, away for 20 parts",
    limit_s=BACK_S,
)
def test_broker_killed(rig: Rig, trial: Trial, fast: bool) -> None:
    rig.start()
    for _ in range(1 if fast else 3):
        killed = time.monotonic_ns()
        rig.broker.kill()
        rig.wait_causes("broker_lost", 20, killed)
        wait_until(lambda: "the line is degraded: broker" in rig.daemon.log, "degraded")
        back = rig.restart_broker()
        trial.recovered(rig.recovery_s(back, 30))
        rig.wait_parts(10)
    audit = trial.judge(rig.finish())
    assert audit.stale_decisions == 0


@pytest.mark.parametrize("seconds", [3, 12])
@pytest.mark.fault(
    "broker hangs",
    "SIGSTOP of mosquitto",
    limit_s=BACK_S,
)
def test_broker_hangs(rig: Rig, trial: Trial, seconds: int) -> None:
    if seconds > 3:
        skip_if_fast()
    trial.row.how += f" for {seconds} s"
    rig.start()
    stopped = time.monotonic_ns()
    rig.broker.pause()
    rig.wait_causes("no_heartbeat", 5, stopped)
    wait_until(lambda: time.monotonic_ns() - stopped > seconds * 1e9, "the hang", seconds + 1)
    rig.broker.resume()
    trial.recovered(rig.recovery_s(time.monotonic_ns(), 30))
    rig.wait_parts(10)
    audit = trial.judge(rig.finish())
    trial.row.notes.append(f"{audit.stale_decisions} decisions came out of the socket late")
    assert audit.stale_decisions <= IN_SOCKET


@pytest.mark.fault(
    "network cut",
    "the daemon in a network namespace of its own; its cable down for 15 s, up again",
    limit_s=BACK_S,
)
def test_network_cut(make_rig: MakeRig, trial: Trial, cable: Cable, cabled: Broker) -> None:
    rig = make_rig(broker=cabled)
    rig.daemon_prefix = cable.inside
    rig.start(mqtt={"host": cable.address})
    cut = time.monotonic_ns()
    cable.cut()
    rig.wait_causes("no_heartbeat", 5, cut)
    wait_until(lambda: "the line is degraded: broker" in rig.daemon.log, "degraded")
    wait_until(lambda: time.monotonic_ns() - cut > 15e9, "the outage", 16)
    cable.mend()
    trial.recovered(rig.recovery_s(time.monotonic_ns(), 40))
    rig.wait_parts(10)
    audit = trial.judge(rig.finish())
    assert audit.stale_decisions == 0


@pytest.mark.fault(
    "network half open",
    "nothing gets from the daemon to the broker for 8 s, everything the other way",
    limit_s=BACK_S,
)
def test_network_half_open(make_rig: MakeRig, trial: Trial, cable: Cable, cabled: Broker) -> None:
    rig = make_rig(broker=cabled)
    rig.daemon_prefix = cable.inside
    rig.start(mqtt={"host": cable.address})
    cut = time.monotonic_ns()
    cable.deafen(True)
    rig.wait_causes("no_heartbeat", 5, cut)
    wait_until(lambda: "the line is degraded: broker" in rig.daemon.log, "degraded")
    wait_until(lambda: time.monotonic_ns() - cut > 8e9, "the outage", 10)
    cable.deafen(False)
    trial.recovered(rig.recovery_s(time.monotonic_ns(), 40))
    rig.wait_parts(10)
    trial.judge(rig.finish())


@pytest.mark.fault(
    "network bad",
    "the daemon's cable takes 60 kbit/s, less than its messages need, for 100 parts",
    limit_s=BACK_S,
)
def test_network_bad(make_rig: MakeRig, trial: Trial, cable: Cable, cabled: Broker) -> None:
    rig = make_rig(broker=cabled)
    rig.daemon_prefix = cable.inside
    rig.start(mqtt={"host": cable.address})
    cable.throttle(60)
    rig.wait_parts(100, 40)
    cable.throttle(None)
    trial.recovered(rig.recovery_s(time.monotonic_ns(), 40))
    rig.wait_parts(10)
    trial.judge(rig.finish())


@pytest.mark.fault(
    "broker away for an hour",
    "free run: as many decisions as an hour brings at one a second, 3600, within a minute",
    limit_s=BACK_S,
)
@pytest.mark.timeout(300)
def test_an_hour_away(rig: Rig, trial: Trial, fast: bool) -> None:
    """Time itself does nothing here: what an hour brings is decisions that nobody takes."""
    missed = 400 if fast else 3600
    trial.row.how = trial.row.how.replace("3600", str(missed))
    (rig.folder / "pictures").mkdir()
    for number in range(3):
        write_image(rig.folder / "pictures" / f"{number}.png", 40 + number)
    folder = {"kind": "folder", "uri": str(rig.folder / "pictures"), "mode": "latest"}
    rig.settings(camera={**folder, "fps": 200, "loop": True, "options": {}})
    daemon = rig.start_daemon()
    rig.recorder.wait("decision", timeout_s=30)
    rig.broker.kill()
    away = Tail(rig.folder / "daemon-0.stderr", plain=True)
    wait_until(lambda: away.count("sent=False") >= missed, "an hour's decisions", 120)
    heard = len(rig.recorder.all("decision"))
    back = rig.restart_broker()
    first = wait_until(lambda: rig.recorder.all("decision")[heard:], "a decision", 30)[0]
    trial.recovered(first.at - back / 1e9)
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: daemon.process.poll() is not None, "the daemon's end", 20)
    rig.settings(camera={**folder, "fps": 1, "loop": True, "options": {}})
    rig.start_daemon()  # takes over what the first one could not send in its last second
    wait_until(lambda: not rig.lost_events(), "every event", 120)
    decisions = rig.recorder.all("decision")
    trial.row.parts = len({h.data["seq"] for h in rig.recorder.all("event")})
    trial.row.uninspected, trial.row.lost = 0, len(rig.lost_events())
    assert max(age_s(h) for h in decisions) < 1.5, "a stale decision"
    trial.judge_recovery()
