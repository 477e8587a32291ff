"""The vocabulary shared by every room: frozen values, no I/O.

Conventions: images are uint8 HWC in RGB order; anomaly maps are float32 HW, larger means
more anomalous; `*_mono_ns` is CLOCK_MONOTONIC and `*_utc_ns` is the UTC wall clock, both in
nanoseconds. Budgets are computed on the monotonic clock only: the wall clock may step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # HWC, RGB, 0..255
FloatMap = NDArray[np.float32]  # HW


class Verdict(StrEnum):
    """What the line may do with a part. Anything that is not PASS is never let through."""

    PASS = "pass"  # noqa: S105  (not a password)
    REJECT = "reject"
    UNKNOWN = "unknown"


class TimeSource(StrEnum):
    """Where a frame's time stamp comes from, best first."""

    CAMERA = "camera"
    DRIVER = "driver"
    ARRIVAL = "arrival"


@dataclass(frozen=True)
class Preprocess:
    """How a camera frame becomes the model's input. Everything after that is in the graph.

    Attributes:
        source_width, source_height: size of the frames that trained the model, in pixels. Another
            size means another field of view, so the daemon answers `unknown`. None accepts any.
        crop: x, y, width, height in source pixels; None takes the whole frame.
        width, height: the model's input size, reached by area interpolation.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source_width: int | None
    source_height: int | None
    width: int
    height: int
    crop: tuple[int, int, int, int] | None = None
    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    color: Literal["RGB"] = "RGB"
    resize: Literal["area"] = "area"


@dataclass(frozen=True, slots=True)
class Gate:
    """Where and when one part meets the reject gate; None for what is not known.

    Attributes:
        offset_ms: travel time from trigger to gate.
        encoder_counts: travel in encoder counts.
        t_mono_ns: when the part stands at the gate.
        encoder: `Trigger.encoder` plus the travel; a PLC takes it modulo its counter's width.
    """

    offset_ms: float | None
    encoder_counts: int | None
    t_mono_ns: int | None
    encoder: int | None


@dataclass(frozen=True, slots=True)
class Trigger:
    """One request for one verdict.

    Attributes:
        trigger_id: unique within a session.
        part_id: the PLC's name for the part; None in free run.
        t_mono_ns: when the trigger reached this process.
        deadline_mono_ns: the last moment at which a `pass` still counts.
        expose_by_mono_ns: a picture taken later may show the next part; None: no limit.
        encoder: the conveyor's count at the photo-eye, where the PLC sends it.
        gate: where this part meets the reject gate, where the settings say it.
    """

    trigger_id: str
    part_id: str | None
    t_mono_ns: int
    deadline_mono_ns: int
    encoder: int | None = None
    gate: Gate | None = None
    expose_by_mono_ns: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One camera picture with its provenance.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        seq: the camera's running number, gaps mean lost frames.
        frame_id: what a person would look the picture up by (file name, camera frame number).
        t_mono_ns, t_utc_ns: time of exposure, or the nearest known (`time_source` says which).
        pixel_format: what the sensor sent, before it became RGB.
    """

    image: Image
    seq: int
    camera_id: str
    frame_id: str
    t_mono_ns: int
    t_utc_ns: int
    time_source: TimeSource = TimeSource.ARRIVAL
    pixel_format: str = "rgb8"


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What the model says of one frame.

    Attributes:
        anomaly_map: float32 [h, w], smoothed, at the model's resolution.
        score: the image score that the graph computed; compare it with the threshold.
    """

    anomaly_map: FloatMap
    score: float


@dataclass(frozen=True, slots=True)
class Region:
    """A connected area of the anomaly map at or above the threshold, in source-image pixels."""

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one trigger, with everything needed to explain it later.

    `score` and `threshold` are None where no trustworthy number exists; the verdict is then
    never PASS. `latency_ms` holds grab, infer and post. `views` are the verdicts of the single
    cameras where several look at one part, in the settings' order.
    """

    verdict: Verdict
    reason: str
    trigger: Trigger
    seq: int
    frame_id: str | None = None
    camera_id: str | None = None
    score: float | None = None
    raw_score: float | None = None
    threshold: float | None = None
    regions: tuple[Region, ...] = ()
    t_exposure_utc_ns: int | None = None
    t_exposure_mono_ns: int | None = None
    time_source: TimeSource | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)
    views: tuple[Decision, ...] = ()

    def __post_init__(self) -> None:
        """A pass without finite numbers below the threshold cannot even be constructed."""
        if self.verdict is Verdict.PASS and not _proves_pass(self.score, self.threshold):
            raise ValueError(f"pass needs a finite score below a finite threshold: {self!r}")
        if self.verdict is Verdict.PASS and any(v.verdict is not Verdict.PASS for v in self.views):
            raise ValueError(f"pass needs a pass of every view: {self!r}")


def _proves_pass(score: Any, threshold: Any) -> bool:
    if score is None or threshold is None:
        return False
    return bool(np.isfinite(score) and np.isfinite(threshold) and score < threshold)
