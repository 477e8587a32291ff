"""What a camera can do wrong while parts flow: each is `unknown`, said, and over when it ends."""

from __future__ import annotations

import time

import pytest
from conftest import MakeRig, Trial, skip_if_fast
from rig import Rig

BACK_S = 5.0
# fault, reason of the decisions, what it stands for
FAULTS = [
    ("stall", "no_frame", "gives no frame any more"),
    ("dead", "camera_failed", "is unplugged, and back"),
    ("raise", "camera_failed", "raises what no driver should"),
    ("half", "torn_frame", "loses half of each frame"),
    ("frozen", "frozen_frame", "gives one old good picture with new time stamps"),
    ("black", "black_frame", "sees nothing: lamp off"),
    ("saturated", "saturated_frame", "sees nothing but light"),
    ("stale", "stale_frame", "gives pictures five seconds old"),
    ("wrong_size", "wrong_frame_size", "gives half the rows"),
    ("slow", "no_frame", "answers after 0.7 s, deaf to its timeout"),
]
QUICK = {"stall", "frozen"}


def case(fault: str, reason: str, what: str) -> object:
    mark = pytest.mark.fault(f"camera: {fault}", f"it {what}, for 25 parts", limit_s=BACK_S)
    return pytest.param(fault, reason, marks=mark, id=fault)


@pytest.mark.parametrize(("fault", "reason"), [case(*one) for one in FAULTS])
def test_camera(rig: Rig, trial: Trial, fault: str, reason: str) -> None:
    if fault not in QUICK:
        skip_if_fast()
    rig.start()
    since = rig.camera(fault)
    rig.wait_reason(reason)
    rig.wait_parts(25, 40)
    still = time.monotonic_ns()
    over = rig.camera("")
    trial.recovered(rig.recovery_s(over, 20))
    rig.wait_parts(5)
    faulty = [g for g in rig.gate() if since + 2e8 < g["t_ns"] < still - 8e8]
    assert {g["gate"] for g in faulty} == {"reject"}
    audit = trial.judge(rig.finish())
    assert audit.parts > 30


@pytest.mark.fault(
    "camera: stall, and the line stops",
    "no frames; the PLC stops after 15 rejects in a row; camera back, operator's button",
    limit_s=BACK_S,
)
def test_camera_stall_stops_the_line(rig: Rig, trial: Trial) -> None:
    rig.start(plc={"stop_after_rejects": 15})
    rig.camera("dead")
    rig.wait_line("stopped", 20)
    rig.camera("")
    rig.wait_armed()
    pressed = time.monotonic_ns()
    rig.acknowledge()
    rig.wait_line("running", 5)
    trial.over(rig, pressed, 20, parts=10)


@pytest.mark.fault(
    "inference slow",
    "a graph that takes 0.6 to 1 s instead of 1 ms, for 25 parts: deadline and queue",
    limit_s=BACK_S,
)
def test_slow_inference(make_rig: MakeRig, trial: Trial) -> None:
    rig = make_rig(model={"fault": "slow"})
    rig.start(decision={"trigger_queue": 3})
    rig.camera("bright")
    rig.wait_reason("deadline_missed")
    rig.wait_reason("queue_overflow")
    rig.wait_parts(25, 40)
    deepest = max(h.data["queue_depth"] for h in rig.recorder.all("heartbeat"))
    over = rig.camera("")
    trial.over(rig, over, 20, parts=5)
    assert deepest <= 3
