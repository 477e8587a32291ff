"""What lies between the thread that reads a camera and the one that decides."""

from __future__ import annotations

import threading
from collections import deque

from metal_edge.daemon.cameras import (
    CameraError,
    EarlyFrameError,
    EndOfStreamError,
    FrameOverflowError,
    TornFrameError,
)
from metal_edge.domain import Frame

Item = Frame | CameraError


class Mailbox:
    """Keeps the newest item, or the oldest ones in order. Thread-safe; nothing in it blocks.

    Args:
        places: how many items are kept in order; None keeps only the newest one.
        all_count: each exposure is some part's, so one that is too old is told, not left out.
    """

    def __init__(self, places: int | None, *, all_count: bool = False) -> None:
        self._places = places
        self._all_count = all_count
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._not_before_ns = 0
        self._end: EndOfStreamError | None = None

    def put(self, item: Item, earliest_ns: int) -> None:
        """Adds a frame or a fault, unless it is older than what is wanted.

        Args:
            item: what `take` returns or raises.
            earliest_ns: the exposure did not begin before; monotonic.
        """
        with self._changed:
            if earliest_ns < self._not_before_ns:
                if not self._all_count:
                    return
                item = early_frame()
            if self._places is None:
                self._items.clear()
                self._items.append(item)
            elif len(self._items) < self._places:
                self._items.append(item)
            elif not isinstance(self._items[-1], FrameOverflowError):
                # Stands after the last exposure that was kept, where the gap is.
                self._items.append(_overflow(self._places))
            self._changed.notify_all()

    def end(self, error: EndOfStreamError) -> None:
        """After what is still in it, `take` raises `error`, for ever."""
        with self._changed:
            self._end = error
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame, or None when nothing came within `timeout_s` seconds.

        Raises:
            CameraError: the next item is a fault, or there will never be one.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._end is not None, timeout_s)
            item = self._items.popleft() if self._items else self._end
        if isinstance(item, CameraError):
            raise item
        return item

    def refuse_before(self, t_mono_ns: int) -> None:
        """Empties the box; from now on only what was exposed at or after `t_mono_ns` counts.

        Raises:
            EarlyFrameError: all count, and there was an exposure in it.
        """
        with self._changed:
            self._not_before_ns = t_mono_ns
            seen = any(isinstance(item, Frame | TornFrameError) for item in self._items)
            self._items.clear()
        if seen and self._all_count:
            raise early_frame()


def early_frame() -> EarlyFrameError:
    """For people."""
    return EarlyFrameError(
        "the exposure came before its command", "send cmd/trigger before the part is there"
    )


def _overflow(places: int) -> FrameOverflowError:
    return FrameOverflowError(
        f"exposures were lost, {places} were waiting",
        "trigger less often, or raise camera.fifo and decision.deadline_ms",
    )
