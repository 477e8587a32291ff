"""The broker dies, hangs, is cut off, or stays away: no stale decision, no lost event."""

from __future__ import annotations

import time

import pytest
from conftest import Trial
from rig import Rig
from support.broker import wait_until

BACK_S = 10.0  # reconnection backs off from 1 to 5 s with jitter, then three heartbeats


@pytest.mark.fault("broker killed", "kill -9 of mosquitto, 3 s away", limit_s=BACK_S)
def test_broker_killed(rig: Rig, trial: Trial) -> None:
    rig.start()
    killed = time.monotonic_ns()
    rig.broker.kill()
    rig.wait_causes("broker_lost", 20, killed)
    wait_until(lambda: "the line is degraded: broker" in rig.daemon.log, "degraded")
    back = rig.restart_broker()
    trial.recovered(rig.recovery_s(back, 30))
    rig.wait_parts(10)
    audit = trial.judge(rig.finish())
    assert audit.stale_decisions == 0
