"""What a driver has to give: one connection to one camera, read by one thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from metal_edge.domain import Image, TimeSource


@dataclass(frozen=True, slots=True, eq=False)
class Exposure:
    """One picture as a source gives it.

    Attributes:
        image: uint8 [H, W, 3] RGB, not written to again.
        t_mono_ns: time of exposure, or the nearest known.
        earliest_ns: the exposure did not begin before this, so much is certain.
        seq: the camera's own frame counter; None where it has none.
        pixel_format: what the camera sent, before it became RGB.
    """

    image: Image
    t_mono_ns: int
    earliest_ns: int
    time_source: TimeSource
    seq: int | None = None
    pixel_format: str = "rgb8"


class Source(Protocol):
    """One connection to one camera, used by one thread.

    Attributes:
        never_silent: sends by itself, so `timeout_s` without an exposure is a failure.
        on_request: exposes only when `request` is called.
    """

    never_silent: bool
    on_request: bool

    def request(self) -> None:
        """Asks for one exposure.

        Raises:
            CameraError: not possible; the source is then closed.
        """

    def read(self, timeout_s: float) -> Exposure | None:
        """The next exposure; None after about `timeout_s` seconds without one.

        Raises:
            TornFrameError: a piece is missing; the next one may be whole.
            EndOfStreamError: there will be no more.
            CameraError: the connection is of no more use.
        """

    def close(self) -> None:
        """Lets go of the device. Called once."""


class Connect(Protocol):
    """How a reader gets its source."""

    def __call__(self) -> Source:
        """A new connection.

        Raises:
            CameraError: not there, or a setting is not possible.
        """
