"""RTSP: pictures that lay in a buffer are as old as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.cameras.capture import CATCH_UP_NS, RtspSource
from metal_edge.daemon.cameras.source import Exposure

MS = 1_000_000
PERIOD = 40  # ms
DELAY = 30  # from exposure to arrival
PICTURE = np.full((4, 4, 3), 90, np.uint8)


class Stream:
    """25 pictures a second, sent since 0 ms; who reads too late finds them all waiting."""

    def __init__(self, begin_ms: int, stamps: bool = True) -> None:
        self.now_ns = begin_ms * MS
        self.number = 0
        self._stamps = stamps

    @property
    def taken_ns(self) -> int:
        """When the last picture that was read was taken."""
        return (self.number - 1) * PERIOD * MS

    def mono_ns(self) -> int:
        return self.now_ns

    def utc_ns(self) -> int:
        return self.now_ns

    def read(self) -> tuple[bool, np.ndarray]:
        arrives_ns = (self.number * PERIOD + DELAY) * MS
        self.now_ns = max(self.now_ns + MS // 5, arrives_ns)
        self.number += 1
        return True, PICTURE

    def get(self, prop: int) -> float:
        return (self.number - 1) * PERIOD if self._stamps else 0.0

    def release(self) -> None: ...


def source(stream: Stream, latency_ms: float = DELAY) -> RtspSource:
    return RtspSource(stream, "cam", stream, timeout_s=1.0, latency_ms=latency_ms)


def first(rtsp: RtspSource) -> Exposure:
    return next(found for _ in range(5000) if (found := rtsp.read(0.1)) is not None)


@pytest.mark.parametrize("behind_ms", [0, 400, 5000])
def test_what_a_server_had_in_store_is_not_shown(behind_ms: int) -> None:
    stream = Stream(behind_ms)
    exposure = first(source(stream))
    assert stream.mono_ns() - stream.taken_ns <= DELAY * MS
    assert exposure.t_mono_ns == pytest.approx(stream.taken_ns, abs=MS)


@given(pauses_ms=st.lists(st.integers(0, 20_000), min_size=1, max_size=4))
def test_after_a_pause_every_picture_shows_its_age(pauses_ms: list[int]) -> None:
    """A pause of the process or its thread between two reads; nothing else tells of it."""
    stream = Stream(0)
    rtsp = source(stream)
    first(rtsp)
    for pause_ms in pauses_ms:
        stream.now_ns += pause_ms * MS
        for _ in range(pause_ms // PERIOD + 70):
            exposure = rtsp.read(0.1)
            assert exposure is not None
            assert exposure.t_mono_ns == pytest.approx(stream.taken_ns, abs=10 * MS)
            assert exposure.earliest_ns <= exposure.t_mono_ns


def test_a_stream_without_time_stamps_is_shown_after_a_while() -> None:
    stream = Stream(0, stamps=False)
    exposure = first(source(stream))
    assert CATCH_UP_NS <= stream.mono_ns() <= CATCH_UP_NS + 2 * PERIOD * MS
    assert exposure.t_mono_ns == stream.mono_ns() - DELAY * MS
