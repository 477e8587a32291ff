"""Settings of one camera and of what is looked for on its pictures."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from metal_edge.settings.base import Level, Section


class CameraMode(StrEnum):
    """What makes a verdict: a command, a new picture, or each exposure of a wired trigger."""

    TRIGGERED = "triggered"
    LATEST = "latest"
    HARDWARE = "hardware"


PixelFormat = Literal[
    "auto",
    "mono8",
    "mono10",
    "mono12",
    "mono10p",
    "mono12p",
    "bayer_rg8",
    "bayer_gr8",
    "bayer_gb8",
    "bayer_bg8",
    "bayer_rg10",
    "bayer_gr10",
    "bayer_gb10",
    "bayer_bg10",
    "bayer_rg12",
    "bayer_gr12",
    "bayer_gb12",
    "bayer_bg12",
    "bayer_rg10p",
    "bayer_gr10p",
    "bayer_gb10p",
    "bayer_bg10p",
    "bayer_rg12p",
    "bayer_gr12p",
    "bayer_gb12p",
    "bayer_bg12p",
    "yuv422",
    "yuyv",
    "rgb8",
    "bgr8",
]
# Corners in source-image pixels, at least three; the outline closes itself.
Polygon = Annotated[
    tuple[tuple[FiniteFloat, FiniteFloat], ...], Field(min_length=3, max_length=256)
]


class RegionSettings(Section):
    """Where on the picture, and how large, an anomaly must be. Part of a recipe."""

    min_area_px: int = Field(
        default=0, ge=0, description="smaller hot areas are let go; source-image pixels"
    )
    hysteresis: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="areas grow from the threshold out to this share of it; empty: no growth",
    )
    inspect: tuple[Polygon, ...] = Field(
        default=(), max_length=64, description="only inside these polygons; empty: everywhere"
    )
    ignore: tuple[Polygon, ...] = Field(
        default=(), max_length=64, description="never inside these polygons"
    )


class FrameCheckSettings(Section):
    """What a picture must show before anybody believes it."""

    black_level: int = Field(
        default=8, ge=0, le=255, description="black when hardly a pixel is above; 0: no check"
    )
    saturated_share: float = Field(
        default=0.98,
        gt=0,
        le=1,
        description="white when more of the pixels are at 255; 1: no check",
    )
    frozen_after: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="this many identical pictures in a row: frozen; 0: no check; empty: 2 if live",
    )


class CameraSettings(Section):
    """Which camera, and how long it may take."""

    kind: str = Field(
        description="folder | video | v4l2 | rtsp | csi | gstreamer | pylon | aravis, or a"
        " registered name"
    )
    uri: str = Field(
        default="",
        description="folder, file, /dev/video0, rtsp://..., serial number: as the kind needs",
    )
    mode: CameraMode = Field(
        default=CameraMode.TRIGGERED,
        description="triggered: one verdict per cmd/trigger; latest: free run, newest frame wins;"
        " hardware: one verdict per exposure of a wired trigger",
    )
    trigger_source: str = Field(
        default="software",
        pattern=r"^[A-Za-z0-9_]{1,32}$",
        description="triggered and hardware: `software`, or the camera's input such as Line1",
    )
    pixel_format: PixelFormat = Field(default="auto", description="what the camera is asked for")
    exposure_us: float | None = Field(default=None, gt=0, le=10e6, description="empty: as it is")
    gain_db: float | None = Field(default=None, ge=0, le=60, description="empty: as it is")
    checks: FrameCheckSettings = FrameCheckSettings()
    camera_id: Level = Field(default="cam0", description="named in every message")
    timeout_s: float = Field(default=1.0, gt=0, le=60, description="longest wait for one frame")
    fifo: int = Field(
        default=8, ge=1, le=256, description="hardware: exposures kept until they are decided"
    )
    fps: float = Field(default=10.0, gt=0, le=1000, description="pace of file cameras in free run")
    loop: bool = Field(default=False, description="file cameras: begin again at the end")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="what only this kind knows, see docs/cameras.md"
    )


class ViewSettings(CameraSettings):
    """One more camera that looks at the same part; its verdict is joined with the others'."""

    bundle: Path = Field(description="the bundle for this view")
    regions: RegionSettings = RegionSettings()
