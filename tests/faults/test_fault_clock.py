"""The wall clock steps: deadlines, ages and heartbeats do not care."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import Trial, skip_if_fast
from rig import Rig

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.mark.parametrize("hours", [1, -1], ids=["forward", "back"])
@pytest.mark.fault(
    "clock step",
    "the daemon's wall clock steps (libfaketime); its monotonic one goes on",
    limit_s=1.0,
)
def test_clock_step(rig: Rig, trial: Trial, hours: int) -> None:
    if not LIBRARIES:
        pytest.skip("faketime is not installed")
    if hours < 0:
        skip_if_fast()
    trial.row.how = trial.row.how.replace("steps", f"steps by {hours:+d} h")
    stamp = rig.folder / "faketime"
    stamp.write_text("+0")
    rig.daemon_environment = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_CACHE_DURATION": "1",  # reading the file for every time stamp is too slow
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    rig.start()
    stamp.write_text(f"{hours * 3600:+d}")
    stepped = time.monotonic_ns()
    wanted_ns = time.time_ns() + hours * 3600 * 10**9
    rig.recorder.wait(
        "decision", lambda h: abs(h.data["t_publish_ns"] - wanted_ns) < 60e9, timeout_s=10
    )
    trial.recovered(rig.recovery_s(stepped, 20))
    rig.wait_parts(40, 40)
    heard = [h.data["reason"] for h in rig.recorder.all("decision") if h.at * 1e9 > stepped]
    assert "stale_frame" not in heard
    # libfaketime costs time, and so does a busy machine; a step would cost every part.
    assert heard.count("deadline_missed") < len(heard) / 4
    trial.judge(rig.finish())
