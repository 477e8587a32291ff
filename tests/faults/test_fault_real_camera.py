"""Cameras as they are: an RTSP server, a GigE Vision stream; stopped, killed, losing packets."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MakeRig, Trial
from rig import Rig
from support.broker import wait_until
from support.camera_stand_ins import FAKE, SYSTEM, Process, RtspServer, gvcp_is_taken, need

sys.path.append(SYSTEM)  # where `need` finds gi
BACK_S = 5.0
# The scene is no part: any score will do, what counts is whether there is a picture.
SCENE = {"source_size": (320, 240), "threshold": 1.5}
GIGE = {"source_size": (512, 512), "threshold": 1.5}
# A stream's newest picture may be up to 40 ms and its way through the decoder old.
SLOW_LINE = {"period_ms": 250, "gate_delay_ms": 600}
BETWEEN_NS = 600_000_000  # so long after a fault began, no part may pass any more


@pytest.fixture
def rtsp() -> Iterator[RtspServer]:
    need("GstRtspServer", "1.0")
    server = RtspServer()
    yield server
    server.send(signal.SIGCONT)
    server.kill()


@pytest.fixture
def gige() -> Iterator[Callable[..., Process]]:
    """Starts Aravis' fake camera, one at a time."""
    need("Aravis", "0.8")
    program = shutil.which(FAKE)
    if program is None:
        pytest.skip(f"{FAKE} not found: apt install aravis-tools")
    if gvcp_is_taken():
        pytest.skip("another GigE Vision camera is answering on this machine")
    made: list[Process] = []

    def start(*arguments: str) -> Process:
        made.append(Process([program, "-i", "127.0.0.1", "-s", "GV01", *arguments]))
        wait_until(gvcp_is_taken, "the fake camera")
        return made[-1]

    yield start
    for process in made:
        process.kill()


def with_gige(make_rig: MakeRig) -> Rig:
    """Not started. Of the system's packages the daemon sees what Aravis needs, and no other."""
    rig = make_rig(model=GIGE)
    (rig.folder / "plugin" / "gi").symlink_to(Path(SYSTEM) / "gi")
    rig.settings(camera={"kind": "aravis", "uri": "127.0.0.1", "timeout_s": 0.4, "options": {}})
    return rig


def with_rtsp(make_rig: MakeRig, server: RtspServer) -> Rig:
    rig = make_rig(model=SCENE)
    camera = {"kind": "rtsp", "uri": server.uri("jpeg"), "timeout_s": 0.4, "options": {}}
    rig.start(camera=camera, plc=SLOW_LINE)
    return rig


def nothing_passes(rig: Rig, since_ns: int, parts: int) -> None:
    rig.wait_parts(parts, 40)
    assert rig.passes(since_ns + BETWEEN_NS) == 0


@pytest.mark.fault(
    "camera: RTSP stalls",
    "SIGSTOP of a real RTSP server (GStreamer) for 20 parts",
    limit_s=BACK_S,
)
def test_rtsp_stalls(make_rig: MakeRig, trial: Trial, rtsp: RtspServer) -> None:
    rig = with_rtsp(make_rig, rtsp)
    stopped = time.monotonic_ns()
    rtsp.send(signal.SIGSTOP)
    nothing_passes(rig, stopped, 20)
    rtsp.send(signal.SIGCONT)
    trial.over(rig, time.monotonic_ns(), 30, parts=5)


@pytest.mark.fault(
    "camera: RTSP killed",
    "kill -9 of a real RTSP server, started again after 20 parts",
    limit_s=BACK_S,
)
def test_rtsp_killed(make_rig: MakeRig, trial: Trial, rtsp: RtspServer) -> None:
    rig = with_rtsp(make_rig, rtsp)
    killed = time.monotonic_ns()
    rtsp.kill()
    nothing_passes(rig, killed, 20)
    rtsp.again()
    trial.over(rig, time.monotonic_ns(), 30, parts=5)


@pytest.mark.fault(
    "camera: GigE Vision killed",
    "kill -9 of Aravis' fake camera, started again after 20 parts",
    limit_s=BACK_S,
)
def test_gige_killed(make_rig: MakeRig, trial: Trial, gige: Callable[..., Process]) -> None:
    first = gige()
    rig = with_gige(make_rig)
    rig.start_daemon()
    rig.start_plc(**SLOW_LINE)
    rig.wait_passes(3, "the line to run", 60)
    killed = time.monotonic_ns()
    first.kill()
    nothing_passes(rig, killed, 20)
    gige()
    trial.over(rig, time.monotonic_ns(), 40, parts=5)


@pytest.mark.fault(
    "camera: GigE Vision loses packets",
    "Aravis' fake camera loses 5 packets in a thousand, a third of the frames, for 30 parts; then"
    " a sound one",
    limit_s=BACK_S,
)
def test_gige_loses_packets(make_rig: MakeRig, trial: Trial, gige: Callable[..., Process]) -> None:
    lossy = gige("-r", "5")
    rig = with_gige(make_rig)
    rig.start_daemon()
    rig.start_plc(**SLOW_LINE)
    rig.wait_reason("torn_frame", 60)
    rig.wait_parts(30, 40)
    torn = [h.data for h in rig.recorder.all("decision") if h.data["reason"] == "torn_frame"]
    assert {decision["verdict"] for decision in torn} == {"unknown"}
    lossy.kill()
    gige()
    trial.over(rig, time.monotonic_ns(), 40, parts=5)
