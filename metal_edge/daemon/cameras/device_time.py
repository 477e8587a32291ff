"""When a frame was exposed, from what its stamp says. Pure."""

from __future__ import annotations

from collections import deque

# So many frames besides those that the driver's buffers hold: one of them came without delay.
WINDOW = 64
# How far two quartz clocks drift apart, at worst, in parts per million.
DRIFT_PPM = 100


class ClockMap:
    """Learns the offset between two clocks from when frames arrive.

    A frame cannot arrive before it was taken, so arrival minus camera time is the offset plus a
    delay. The smallest of the last such differences, `WINDOW` more than there are buffers, each
    allowed to drift, has the smallest delay in it. Mapped times are thus late by that delay
    (exposure, read-out and transfer of the quickest frame) and by no more than the drift; never
    later than the arrival.
    A frame that waited in a buffer is recognised by its age. Method: the minimum filter of
    NTP's clock filter algorithm (RFC 5905, 10), one way.

    Args:
        buffers: of the driver. After a pause all of them may come late, one after the other.
    """

    def __init__(self, buffers: int = 0) -> None:
        # arrival, difference
        self._samples: deque[tuple[int, int]] = deque(maxlen=WINDOW + buffers)
        self._last_ns: int | None = None

    def map(self, camera_ns: int, arrival_ns: int) -> int:
        """Monotonic time of a frame; call it once per frame, in order.

        Args:
            camera_ns: its stamp, on the camera's clock.
            arrival_ns: when it was received, monotonic.

        Returns:
            at most `arrival_ns`.
        """
        if self._last_ns is not None and camera_ns < self._last_ns:
            self._samples.clear()  # the clock was set back: the camera restarted
        self._last_ns = camera_ns
        self._samples.append((arrival_ns, arrival_ns - camera_ns))
        offset_ns = min(
            difference + (arrival_ns - then) * DRIFT_PPM // 1_000_000
            for then, difference in self._samples
        )
        return camera_ns + offset_ns


class ExposureBegin:
    """When an exposure cannot have begun before, of a camera that runs free.

    A stamp mostly is the end of a frame (V4L2_BUF_FLAG_TSTAMP_SRC_EOF, the default of the
    kernel's drivers); its exposure began one read-out and one exposure time before, each at most
    a frame period. One period before lies the stamp of the frame before, or an earlier one if
    some were lost.

    Args:
        exposure_ns: how long each exposure takes; None: nobody knows, so a period.
    """

    def __init__(self, exposure_ns: int | None = None) -> None:
        self._exposure_ns = exposure_ns
        self._ends: deque[int] = deque(maxlen=2)

    def earliest(self, end_ns: int) -> int:
        """Of the frame that ended at `end_ns`; call it once per frame, in order.

        Returns:
            monotonic nanoseconds; 0 as long as too few frames came to tell.
        """
        if self._ends and end_ns < self._ends[-1]:
            self._ends.clear()  # another clock
        earliest_ns = 0
        if self._exposure_ns is not None and self._ends:
            earliest_ns = self._ends[-1] - self._exposure_ns
        elif len(self._ends) == 2:
            earliest_ns = self._ends[0]
        self._ends.append(end_ns)
        return max(0, earliest_ns)
