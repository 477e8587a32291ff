"""A stream camera around sources that do as they are told, its threads real."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from metal_edge.daemon.cameras import CameraError, CameraTimeoutError
from metal_edge.daemon.cameras.source import Exposure
from metal_edge.daemon.cameras.stream import StreamCamera
from metal_edge.daemon.clock import SystemClock
from metal_edge.domain import Frame, TimeSource
from metal_edge.settings import CameraSettings
from support.broker import wait_until

Step = int | None | Exception | Callable[[], object]
IMAGE = np.zeros((2, 2, 3), np.uint8)


class Told:
    """A source that takes its steps from a list: a frame number, an error, None for silence, or
    something to do first. When the list is at its end it is silent."""

    def __init__(self, steps: Iterator[Step], on_request: bool, never_silent: bool) -> None:
        self.steps = steps
        self.on_request = on_request
        self.never_silent = never_silent
        self.requests = 0
        self.closed = False
        self.requested_ns = 0
        self.earliest_ns: int | None = None

    def request(self) -> None:
        self.requests += 1
        self.requested_ns = time.monotonic_ns()

    def read(self, timeout_s: float) -> Exposure | None:
        if self.on_request and not self.requests:
            return None
        step = next(self.steps, None)
        while callable(step):
            step()
            step = next(self.steps, None)
        if isinstance(step, Exception):
            raise step
        if step is None:
            time.sleep(min(timeout_s, 0.005))  # the camera's own pace
            return None
        now_ns = time.monotonic_ns()
        earliest_ns = self.requested_ns if self.on_request else self.earliest_ns or now_ns
        seq = step if step >= 0 else None
        return Exposure(IMAGE, now_ns, earliest_ns, TimeSource.CAMERA, seq, "mono12")

    def close(self) -> None:
        self.closed = True


class ToldCamera(StreamCamera):
    """One list of steps per connection, or an error instead; the last one again and again."""

    def __init__(
        self,
        *connections: Iterable[Step] | Exception,
        on_request: bool = False,
        never_silent: bool = False,
        **settings: Any,
    ) -> None:
        given = {"kind": "told", "timeout_s": 0.2, "mode": "latest", **settings}
        super().__init__(CameraSettings(**given), SystemClock())
        self.connections = connections
        self.kind = (on_request, never_silent)
        self.sources: list[Told] = []
        self.tries: list[int] = []

    def connect(self) -> Told:
        place = min(len(self.tries), len(self.connections) - 1)
        self.tries.append(time.monotonic_ns())
        steps = self.connections[place]
        if isinstance(steps, Exception):
            raise steps
        self.sources.append(Told(iter(steps), *self.kind))
        return self.sources[-1]


MakeTold = Callable[..., ToldCamera]


def grabbed(camera: StreamCamera, count: int) -> list[Frame | type[CameraError]]:
    """Frames and kinds of errors, silence left out."""
    out: list[Frame | type[CameraError]] = []

    def one() -> bool:
        try:
            out.append(camera.grab(1))
        except CameraTimeoutError:
            return False
        except CameraError as error:
            out.append(type(error))
        return len(out) == count

    wait_until(one, f"{count} frames or errors")
    return out


def numbers(items: list[Frame | type[CameraError]]) -> list[Any]:
    return [item.seq if isinstance(item, Frame) else item for item in items]


HARDWARE = {"mode": "hardware", "trigger_source": "Line1"}
