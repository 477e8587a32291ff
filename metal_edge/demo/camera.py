"""The simulated camera above the simulated line; settings kind `simulator`.

Options (`[camera.options]`): `seed` and `start_index` say which parts come, `defect_rate` how
many are bad, `exposure_ms` how long one picture takes, `prefetch` whether the next part is
rendered ahead of its trigger. A real camera exposes without our CPU, so by default the
renderer works ahead in one background thread of low priority; the pictures are the same.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metal_edge.daemon.cameras import CameraError, CameraTimeoutError
from metal_edge.daemon.clock import Clock
from metal_edge.demo.render import LINE_INDEXES, Part, PartSequence
from metal_edge.domain import Frame, TimeSource
from metal_edge.errors import DataError, SettingsError
from metal_edge.settings import CameraMode, CameraSettings

_NICE = 10  # the renderer gives way to the inspection it feeds
_NS = 1_000_000_000


class SimulatorOptions(BaseModel):
    """`[camera.options]` of the simulator."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: int = Field(default=0, ge=0)
    defect_rate: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    start_index: int = Field(default=0, ge=0, lt=LINE_INDEXES.stop)
    exposure_ms: float = Field(default=2.0, ge=0, le=10_000, allow_inf_nan=False)
    prefetch: bool = True


@dataclass(frozen=True, slots=True)
class _Exposure:
    """A picture that was asked for: which part, the camera's number for it, and when."""

    index: int
    seq: int
    t_mono_ns: int


class _Renderer:
    """Renders parts on one background thread and holds at most one that nobody asked for."""

    def __init__(self, sequence: PartSequence, prefetch: bool) -> None:
        self._sequence = sequence
        self._prefetch = prefetch
        self._ahead: tuple[int, Future[Part]] | None = None
        self._pool = ThreadPoolExecutor(1, "simulator", initializer=_lower_priority)

    def request(self, index: int) -> Future[Part]:
        """The picture of part `index`, under way or done."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead[0] == index:
                return ahead[1]
            ahead[1].cancel()  # the wrong guess; costs its time only when already begun
        return self._pool.submit(self._sequence.render, index)

    def guess(self, index: int) -> None:
        """Starts on the part that will probably be asked for next."""
        if self._prefetch and self._ahead is None and index in LINE_INDEXES:
            self._ahead = (index, self._pool.submit(self._sequence.render, index))

    def warm_up(self, index: int) -> None:
        """Renders one part, which fills the tables that all pictures share, and waits for it."""
        future = self._pool.submit(self._sequence.render, index)
        if self._prefetch:
            self._ahead = (index, future)
        future.result()

    def close(self) -> None:
        """Ends the thread; a render under way is finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class SimulatorCamera:
    """See `metal_edge.daemon.cameras.Camera`. Used by one thread."""

    live = False

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._options = _parse_options(settings)
        self._sequence = PartSequence(self._options.seed, self._options.defect_rate)
        self._renderer: _Renderer | None = None
        self._next_index = self._options.start_index
        self._next_seq = 0
        self._pending: tuple[_Exposure, Future[Part]] | None = None
        self._t_start_ns = 0

    def open(self) -> None:
        """Starts the renderer (about a second the first time), and in free run the line."""
        if self._renderer is not None:
            return
        self._renderer = _Renderer(self._sequence, self._options.prefetch)
        self._renderer.warm_up(self._next_index)
        self._t_start_ns = self._clock.mono_ns() - self._next_seq * self._period_ns

    def close(self) -> None:
        """Stops the renderer."""
        renderer, self._renderer = self._renderer, None
        self._pending = None
        if renderer is not None:
            renderer.close()

    def trigger(self, part_id: str | None) -> None:
        """Exposes part `part_id`; without a known id, the next part in sequence.

        A trigger before the last frame was grabbed replaces it, and leaves a gap in `seq`.

        Raises:
            CameraError: not open.
        """
        renderer = self._opened()
        if self._settings.mode is CameraMode.LATEST:
            return
        index = self._next_index
        if part_id is not None:
            try:
                index = PartSequence.index_of(part_id)
            except DataError:
                index = self._next_index  # a foreign id names no part of this simulation
        exposure = _Exposure(index, self._next_seq, self._clock.mono_ns())
        self._drop_pending()
        self._pending = (exposure, renderer.request(index))
        self._next_seq += 1
        self._next_index = min(index + 1, LINE_INDEXES.stop - 1)

    def grab(self, timeout_s: float) -> Frame:
        """The frame of the last trigger, or in free run the newest part under the camera.

        Raises:
            CameraTimeoutError: not triggered, or not exposed within `timeout_s` seconds.
            CameraError: not open.
        """
        renderer = self._opened()
        give_up = time.monotonic() + timeout_s
        if self._settings.mode is CameraMode.LATEST:
            exposure = self._next_free_exposure()
            self._wait_until(exposure.t_mono_ns, give_up)
            self._next_seq = exposure.seq + 1
            self._next_index = self._options.start_index + self._next_seq
            self._drop_pending()  # a picture that came too late for the last grab
            future = renderer.request(exposure.index)
            self._pending = (exposure, future)
        elif self._pending is None:
            raise CameraTimeoutError(
                f"camera {self._settings.camera_id} was not triggered", "trigger it before grab"
            )
        else:
            exposure, future = self._pending
        self._wait_until(exposure.t_mono_ns + round(self._options.exposure_ms * 1e6), give_up)
        part = self._result(future, give_up)
        self._pending = None
        renderer.guess(self._next_index)
        return self._frame(exposure, part)

    def _drop_pending(self) -> None:
        """Gives up a picture nobody waits for, so that a slow machine gathers no backlog."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending[1].cancel()

    @property
    def _period_ns(self) -> int:
        return round(_NS / self._settings.fps)

    def _next_free_exposure(self) -> _Exposure:
        """Parts pass whether grabbed or not: the newest exposure not yet delivered."""
        elapsed = self._clock.mono_ns() - self._t_start_ns
        seq = max(self._next_seq, elapsed // self._period_ns)
        index = min(self._options.start_index + seq, LINE_INDEXES.stop - 1)
        return _Exposure(index, seq, self._t_start_ns + seq * self._period_ns)

    def _wait_until(self, t_mono_ns: int, give_up: float) -> None:
        wait_s = (t_mono_ns - self._clock.mono_ns()) / _NS
        if time.monotonic() + wait_s > give_up:
            time.sleep(max(0.0, give_up - time.monotonic()))
            raise self._too_late()
        if wait_s > 0:
            time.sleep(wait_s)

    def _result(self, future: Future[Part], give_up: float) -> Part:
        try:
            return future.result(max(0.0, give_up - time.monotonic()))
        except FutureTimeoutError as error:
            raise self._too_late() from error

    def _too_late(self) -> CameraTimeoutError:
        return CameraTimeoutError(
            f"camera {self._settings.camera_id} gave no frame in time",
            "raise camera.timeout_s, lower camera.options.exposure_ms, or ease the machine",
        )

    def _opened(self) -> _Renderer:
        if self._renderer is None:
            raise CameraError(f"camera {self._settings.camera_id} is not open", "open it first")
        return self._renderer

    def _frame(self, exposure: _Exposure, part: Part) -> Frame:
        ago_ns = self._clock.mono_ns() - exposure.t_mono_ns
        return Frame(
            image=part.image,
            seq=exposure.seq,
            camera_id=self._settings.camera_id,
            frame_id=PartSequence.part_id(exposure.index),
            t_mono_ns=exposure.t_mono_ns,
            t_utc_ns=self._clock.utc_ns() - ago_ns,
            time_source=TimeSource.CAMERA,
        )


def _parse_options(settings: CameraSettings) -> SimulatorOptions:
    try:
        return SimulatorOptions.model_validate(settings.options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"camera.options.{key}: {first['msg']}",
            f"the simulator knows {', '.join(SimulatorOptions.model_fields)}",
        ) from error


def _lower_priority() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
