"""RTSP from a real server: by TCP and UDP, stalled, killed, and back again."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
from support.broker import wait_until
from support.camera_stand_ins import Open, RtspServer, held, next_frame, silence

from metal_edge.daemon.cameras import Camera, CameraError, CameraTimeoutError
from metal_edge.domain import Frame, TimeSource

BACK_WITHIN_S = 5.0
JPEG_BY_UDP = (
    "rtspsrc location={uri} protocols=udp latency=0 ! rtpjpegdepay ! jpegdec ! videoconvert"
)


def is_the_scene(frame: Frame) -> bool:
    red, green, blue = (float(np.median(frame.image[..., channel])) for channel in range(3))
    return frame.image.shape == (240, 320, 3) and red > 180 and green < 60 and blue < 60


def rtsp_camera(opened: Open, server: RtspServer, stream: str = "h264") -> Camera:
    return opened("rtsp", uri=server.uri(stream), mode="latest", timeout_s=0.5)


@pytest.mark.parametrize("stream", ["h264", "jpeg"])
def test_pictures_by_tcp(opened: Open, rtsp: RtspServer, stream: str) -> None:
    camera = rtsp_camera(opened, rtsp, stream)
    frames = [next_frame(camera) for _ in range(10)]
    assert all(is_the_scene(frame) for frame in frames)
    assert all(frame.time_source is TimeSource.ARRIVAL for frame in frames)
    assert [frame.seq for frame in frames] == sorted({frame.seq for frame in frames})
    assert len({frame.image.tobytes() for frame in frames}) > 5  # the ball moves


def test_pictures_by_udp_through_ffmpeg(
    opened: Open, rtsp: RtspServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;udp")
    assert is_the_scene(next_frame(rtsp_camera(opened, rtsp)))


def test_pictures_by_udp_through_gstreamer(opened: Open, rtsp: RtspServer) -> None:
    pipeline = JPEG_BY_UDP.format(uri=rtsp.uri("jpeg"))
    camera = opened("gstreamer", mode="latest", options={"pipeline": pipeline})
    assert is_the_scene(next_frame(camera))


def test_a_trigger_waits_for_a_newer_picture(opened: Open, rtsp: RtspServer) -> None:
    camera = opened("rtsp", uri=rtsp.uri("jpeg"))
    next_frame(camera)
    for _ in range(5):
        asked_ns = time.monotonic_ns()
        camera.trigger(None)
        assert next_frame(camera).t_mono_ns > asked_ns


def test_a_stall_gives_no_old_picture_and_ends_within_five_seconds(
    opened: Open, rtsp: RtspServer
) -> None:
    camera = rtsp_camera(opened, rtsp)
    next_frame(camera)
    rtsp.send(signal.SIGSTOP)
    silence(camera)
    # Old pictures would come now, with new stamps: FFmpeg hands out what it has kept.
    until = time.monotonic() + 4
    while time.monotonic() < until:
        with pytest.raises(CameraTimeoutError):
            camera.grab(0.2)
    rtsp.send(signal.SIGCONT)
    began = time.monotonic()
    assert is_the_scene(next_frame(camera, BACK_WITHIN_S))
    print(f"back after {time.monotonic() - began:.1f} s")


def test_a_killed_server_is_named_and_found_again_within_five_seconds(
    opened: Open, rtsp: RtspServer
) -> None:
    camera = rtsp_camera(opened, rtsp)
    next_frame(camera)
    rtsp.kill()
    wait_until(lambda: "stalled" in silence(camera) or "opened" in silence(camera), "its reason")
    rtsp.again()
    began = time.monotonic()
    assert is_the_scene(next_frame(camera, BACK_WITHIN_S))
    print(f"back after {time.monotonic() - began:.1f} s")


def test_nobody_there(opened: Open, rtsp: RtspServer) -> None:
    rtsp.kill()
    with pytest.raises(CameraError, match="cannot be opened"):
        rtsp_camera(opened, rtsp)


def test_a_server_that_does_not_answer_is_given_up_in_time(opened: Open, rtsp: RtspServer) -> None:
    rtsp.send(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(CameraError):
        rtsp_camera(opened, rtsp)
    assert time.monotonic() - began < 8


def test_twenty_openings_leave_nothing_behind(opened: Open, rtsp: RtspServer) -> None:
    camera = rtsp_camera(opened, rtsp, "jpeg")
    next_frame(camera)
    before = held()
    for _ in range(20):
        camera.close()
        camera.open()
        next_frame(camera)
    wait_until(lambda: held() <= before, f"no more than {before} descriptors and threads")
