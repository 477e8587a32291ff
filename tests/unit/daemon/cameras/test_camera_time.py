"""A camera's clock mapped to the host's: never in the future, late by the least delay at most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.cameras.device_time import DRIFT_PPM, WINDOW, ClockMap

MS = 1_000_000
delays = st.lists(st.integers(1 * MS, 80 * MS), min_size=1, max_size=200)


def taken(delays_ns: list[int], period_ns: int) -> list[int]:
    """When each frame was taken, on the host's clock; frames arrive in order."""
    return [1_000_000 * MS + number * period_ns for number in range(len(delays_ns))]


@given(
    delays_ns=delays,
    period_ns=st.integers(90 * MS, 1000 * MS),
    offset_ns=st.integers(-(10**18), 10**18),
    ppm=st.integers(-DRIFT_PPM // 2, DRIFT_PPM // 2),
)
def test_a_mapped_time_lies_between_the_exposure_and_the_arrival(
    delays_ns: list[int], period_ns: int, offset_ns: int, ppm: int
) -> None:
    """With an offset, a drift and delays that only the test knows."""
    clock = ClockMap()
    times = taken(delays_ns, period_ns)
    for number, (true_ns, delay_ns) in enumerate(zip(times, delays_ns, strict=True)):
        elapsed_ns = true_ns - times[0]
        camera_ns = true_ns + offset_ns + elapsed_ns * ppm // 1_000_000
        mapped_ns = clock.map(camera_ns, true_ns + delay_ns)
        window = delays_ns[max(0, number + 1 - WINDOW) : number + 1]
        drift_ns = (len(window) * period_ns + 80 * MS) * 2 * DRIFT_PPM // 1_000_000
        assert mapped_ns <= true_ns + delay_ns
        assert true_ns <= mapped_ns + 1
        assert mapped_ns - true_ns <= min(window) + drift_ns


@pytest.mark.parametrize("ppm", [-DRIFT_PPM // 2, DRIFT_PPM // 2])
def test_drift_never_makes_a_frame_older_than_it_is(ppm: int) -> None:
    """One frame a second, the first of all without delay: after a minute 3 ms of drift."""
    clock = ClockMap()
    for second in range(WINDOW):
        true_ns = (1000 + second) * 1000 * MS
        delay_ns = 0 if second == 0 else 20 * MS
        mapped_ns = clock.map(true_ns + second * 1000 * ppm, true_ns + delay_ns)
        assert true_ns <= mapped_ns <= true_ns + delay_ns


def test_a_frame_that_waited_is_as_old_as_it_is() -> None:
    clock = ClockMap()
    for number in range(10):
        clock.map(number * 100 * MS, 5_000 * MS + number * 100 * MS + 2 * MS)
    waited_ns = 5_000 * MS + 1_000 * MS + 900 * MS
    assert abs(waited_ns - clock.map(1_000 * MS, waited_ns) - 898 * MS) < 1 * MS


@pytest.mark.parametrize("buffers", [10, 64, 256])
def test_all_frames_that_waited_while_the_process_was_stopped_show_it(buffers: int) -> None:
    """As many as the driver has places for, one every 10 ms, all read at once when it goes on."""
    clock = ClockMap(buffers)
    for number in range(2 * WINDOW):
        clock.map(number * 10 * MS, number * 10 * MS + 2 * MS)
    first = 2 * WINDOW
    arrival_ns = (first + buffers) * 10 * MS + 2 * MS
    for number in range(first, first + buffers):
        age_ns = arrival_ns - clock.map(number * 10 * MS, arrival_ns)
        assert abs(age_ns - (first + buffers - number) * 10 * MS) < 1 * MS


def test_the_same_frame_handed_out_again_is_as_old_as_it_is() -> None:
    """A clock that was set back does not show the very same time."""
    clock = ClockMap()
    for number in range(10):
        clock.map(number * 100 * MS, number * 100 * MS + 2 * MS)
    assert clock.map(900 * MS, 1900 * MS) < 903 * MS


def test_a_camera_that_restarts_is_learnt_anew() -> None:
    """Its clock begins at zero; the old offset would make all frames look like the past."""
    clock = ClockMap()
    for number in range(5):
        clock.map(10**15 + number * 100 * MS, number * 100 * MS + 10**12)
    arrival_ns = 10**12 + 60_000 * MS
    assert clock.map(5, arrival_ns) == arrival_ns


def test_a_clock_set_back_between_two_frames_is_forgotten_after_a_window() -> None:
    clock = ClockMap()
    clock.map(0, 10**12)
    ages = [
        10**12 + n * 1000 * MS - clock.map(n * 1000 * MS - 500 * MS, 10**12 + n * 1000 * MS)
        for n in range(1, WINDOW + 2)
    ]
    assert ages[0] > 400 * MS  # looks old: `stale`, nothing passes
    assert ages[-1] < 10 * MS
