"""The daemon dies, hangs, or breaks inside: the gate is shut until a proper one is back."""

from __future__ import annotations

import random
import signal
import time

import pytest
from conftest import Trial
from rig import Rig
from support.broker import wait_until

BACK_S = 5.0


@pytest.mark.fault(
    "daemon killed",
    "kill -9, 100 times: one in four is awaited, the others hit at random, starting or running",
    limit_s=BACK_S,
)
@pytest.mark.timeout(900)
def test_daemon_killed(rig: Rig, trial: Trial, chance: random.Random, fast: bool) -> None:
    kills = 8 if fast else 100
    trial.row.how = trial.row.how.replace("100", str(kills))
    rig.start()
    for number in range(1, kills + 1):
        killed = rig.kill_daemon()
        rig.start_daemon()
        if number % 4 == 0:
            trial.recovered(rig.recovery_s(killed, 60))
        time.sleep(chance.uniform(0, 1.2))  # the moment of the next kill
    rig.wait_passes(10, "parts after the last kill", 60)
    trial.judge(rig.finish())


@pytest.mark.fault(
    "daemon hangs",
    "SIGSTOP for 3 s, then SIGCONT",
    limit_s=BACK_S,
)
def test_daemon_hangs(rig: Rig, trial: Trial, fast: bool) -> None:
    rig.start()
    for _ in range(1 if fast else 3):
        with rig.daemon.frozen():
            stopped = time.monotonic_ns()
            rig.wait_causes("no_heartbeat", 10, stopped)
            wait_until(lambda since=stopped: time.monotonic_ns() - since > 3e9, "the hang")
        trial.recovered(rig.recovery_s(time.monotonic_ns(), 30))
        rig.wait_parts(5)
    trial.judge(rig.finish())


@pytest.mark.fault(
    "daemon hangs for good",
    "SIGSTOP; after 2 s killed and replaced, as systemd's watchdog does",
    limit_s=BACK_S,
)
def test_daemon_hangs_for_good(rig: Rig, trial: Trial) -> None:
    rig.start()
    rig.daemon.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic_ns()
    rig.wait_causes("no_heartbeat", 10, stopped)
    wait_until(lambda: time.monotonic_ns() - stopped > 2e9, "the watchdog")
    killed = rig.kill_daemon()
    rig.start_daemon()
    trial.over(rig, killed, 30, parts=10)


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(
            "command",
            marks=pytest.mark.fault(
                "exception in an MQTT callback",
                "the trigger queue raises while a command is handled, five times",
                limit_s=BACK_S,
            ),
        ),
        pytest.param(
            "thread",
            marks=pytest.mark.fault(
                "MQTT thread dies",
                "paho raises in its own code; its thread ends, `is_connected()` stays true",
                limit_s=BACK_S,
            ),
        ),
    ],
)
def test_exception_in_a_callback(rig: Rig, trial: Trial, where: str) -> None:
    rig.start()
    hurt = rig.camera(f"sabotage-{where}")
    # The thread's end is noticed by the next beat; its will says so to the PLC.
    cause = "no_decision" if where == "command" else "daemon_offline"
    rig.wait_causes(cause, 3, hurt)
    trial.recovered(rig.recovery_s(hurt, 40, after_ns=rig.first_ns(cause, hurt)))
    rig.wait_parts(10)
    assert "Traceback" in rig.daemon.log, "an exception without a word"
    trial.judge(rig.finish())


@pytest.mark.fault(
    "daemon dead for longer than the line waits",
    "kill -9; the PLC stops after 2 s; a new session must judge two golden parts rightly",
    limit_s=BACK_S,
)
def test_line_stops_and_golden_parts_start_it(rig: Rig, trial: Trial) -> None:
    golden = {"golden_good": "G-good", "golden_bad": "G-bad"}
    rig.start(plc={"stop_after_s": 2, "no_operator": None, **golden})
    rig.kill_daemon()
    rig.wait_line("stopped", 10)
    started = time.monotonic_ns()
    rig.start_daemon()
    rig.wait_line("running", 30)
    trial.recovered(rig.recovery_s(started, 30))
    rig.wait_parts(10)
    assert rig.line_states() == ["stopped", "checking", "running"]
    shown = [g for g in rig.gate() if g["golden"]]
    assert [(g["part_id"], g["cause"], g["gate"]) for g in shown] == [
        ("G-good", "pass_verdict", "reject"),
        ("G-bad", "reject_verdict", "reject"),
    ]
    trial.judge(rig.finish())


@pytest.mark.fault(
    "PLC hangs",
    "SIGSTOP of the PLC for 3 s: no echo; then it places what is overdue all at once",
    limit_s=BACK_S,
)
def test_plc_hangs(rig: Rig, trial: Trial) -> None:
    rig.start(mqtt={"echo_timeout_s": 1.0})
    stopped = time.monotonic_ns()
    with rig.plc_frozen():
        rig.wait_problem("echo")
        wait_until(lambda: time.monotonic_ns() - stopped > 3e9, "the hang")
    resumed = time.monotonic_ns()
    rig.wait_online(resumed)
    trial.over(rig, resumed, 30, parts=10)
