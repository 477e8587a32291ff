"""Whatever GStreamer can read, out of an appsink: Jetson CSI cameras, and any pipeline."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from pydantic import Field

from metal_edge.daemon.cameras import CameraError, TornFrameError
from metal_edge.daemon.cameras.device_time import ExposureBegin
from metal_edge.daemon.cameras.options import Options, parse_options, refuse_settings
from metal_edge.daemon.cameras.pixel_formats import (
    FORMATS,
    PixelDataError,
    PixelFormat,
    to_rgb,
    without_padding,
)
from metal_edge.daemon.cameras.source import Exposure
from metal_edge.daemon.cameras.stream import OPEN_TIMEOUT_S, StreamCamera
from metal_edge.daemon.cameras.system import load_namespace
from metal_edge.daemon.clock import Clock
from metal_edge.domain import TimeSource
from metal_edge.errors import SettingsError
from metal_edge.settings import CameraSettings

# GStreamer's names in caps, by ours.
_RAW = {
    "GRAY8": "mono8",
    "GRAY16_LE": "mono16",
    "UYVY": "yuv422",
    "YUY2": "yuyv",
    "RGB": "rgb8",
    "BGR": "bgr8",
    "BGRx": "bgra8",
    "RGBx": "rgba8",
}
_BAYER = {"rggb": "bayer_rg8", "grbg": "bayer_gr8", "gbrg": "bayer_gb8", "bggr": "bayer_bg8"}
_CAPS = f"video/x-raw,format={{{','.join(_RAW)}}};video/x-bayer,format={{{','.join(_BAYER)}}}"
_SINK = "metal_edge_sink"
_NS = 1_000_000_000
_initialised = threading.Lock()


def load_gst() -> Any:
    """GStreamer, ready to use.

    Raises:
        CameraError: not installed.
    """
    gst = load_namespace("Gst", "1.0")
    with _initialised:
        if not gst.is_initialized():
            gst.init(None)
    return gst


class GStreamerSource:
    """One running pipeline. Stamped with the pipeline's clock where that is CLOCK_MONOTONIC."""

    never_silent = True
    on_request = False

    def __init__(self, gst: Any, pipeline: str, clock: Clock, name: str, buffers: int) -> None:
        self._gst = gst
        self._clock = clock
        self._name = name
        self._begin = ExposureBegin()
        sink = f"appsink name={_SINK} sync=false max-buffers={buffers} drop=true"
        try:
            self._pipeline = gst.parse_launch(f"{pipeline} ! {sink}")
        except _error_type() as error:
            raise CameraError(
                f"camera {name}: GStreamer does not understand the pipeline ({error.message})",
                "try it with gst-launch-1.0",
            ) from error
        self._sink = self._pipeline.get_by_name(_SINK)
        self._sink.set_property("caps", gst.Caps.from_string(_CAPS))
        try:
            self._play()
        except CameraError:
            self.close()
            raise

    def request(self) -> None:
        """See `Source.request`; never called."""

    def read(self, timeout_s: float) -> Exposure | None:
        """See `Source.read`."""
        began_ns = self._clock.mono_ns()
        sample = self._sink.emit("try-pull-sample", round(timeout_s * _NS))
        if sample is None:
            self._look_for_errors()
            return None
        return self._exposure(sample, began_ns)

    def close(self) -> None:
        """See `Source.close`."""
        self._pipeline.set_state(self._gst.State.NULL)

    def _play(self) -> None:
        gst = self._gst
        self._pipeline.set_state(gst.State.PLAYING)
        done, _, _ = self._pipeline.get_state(round(OPEN_TIMEOUT_S * _NS))
        if done in (gst.StateChangeReturn.SUCCESS, gst.StateChangeReturn.NO_PREROLL):
            return
        self._look_for_errors()
        raise CameraError(
            f"camera {self._name}: the pipeline does not run ({done.value_nick})",
            "check the sensor, and try the pipeline with gst-launch-1.0",
        )

    def _look_for_errors(self) -> None:
        gst = self._gst
        kinds = gst.MessageType.ERROR | gst.MessageType.EOS
        message = self._pipeline.get_bus().pop_filtered(kinds)
        if message is None:
            return
        if message.type == gst.MessageType.EOS:
            raise CameraError(f"camera {self._name}: the stream has ended", "check its sender")
        error, _ = message.parse_error()
        raise CameraError(
            f"camera {self._name}: {error.message}", "check the sensor, its cable and its driver"
        )

    def _exposure(self, sample: Any, began_ns: int) -> Exposure:
        now_ns = self._clock.mono_ns()
        buffer, caps = sample.get_buffer(), sample.get_caps().get_structure(0)
        if buffer.has_flags(self._gst.BufferFlags.CORRUPTED):
            raise self._torn("its sender says that it is corrupted")
        pixel_format, width, height = _format_of(caps)
        full_range = (caps.get_string("colorimetry") or "").startswith("1:")
        mapped, info = buffer.map(self._gst.MapFlags.READ)
        if not mapped:
            raise self._torn("its memory cannot be read")
        try:
            data = without_padding(np.frombuffer(info.data, np.uint8), width, height, pixel_format)
            image = to_rgb(data, width, height, pixel_format, full_range=full_range)
        except PixelDataError as error:
            raise self._torn(str(error)) from error
        finally:
            buffer.unmap(info)
        stamp_ns, source = self._time(buffer.pts, now_ns)
        begun_ns = self._begin.earliest(stamp_ns)
        # One that came while nobody read is no newer than the moment at which that ended.
        earliest_ns = min(began_ns, begun_ns) if source is TimeSource.ARRIVAL else begun_ns
        return Exposure(image, stamp_ns, earliest_ns, source, pixel_format=pixel_format.name)

    def _torn(self, why: str) -> TornFrameError:
        return TornFrameError(f"camera {self._name}: {why}", "check the sensor and its cable")

    def _time(self, pts: int, now_ns: int) -> tuple[int, TimeSource]:
        """The buffer's time stamp counts from when the pipeline began, on the pipeline's clock."""
        gst, clock = self._gst, self._pipeline.get_clock()
        if pts != gst.CLOCK_TIME_NONE and type(clock).__name__ == "SystemClock":
            stamp_ns = pts + self._pipeline.get_base_time()
            if 0 < stamp_ns <= now_ns:
                return stamp_ns, TimeSource.DRIVER
        return now_ns, TimeSource.ARRIVAL


def _error_type() -> Any:
    """Of all errors that GStreamer raises."""
    return load_namespace("GLib", "2.0").Error


def _format_of(caps: Any) -> tuple[PixelFormat, int, int]:
    names = _BAYER if caps.get_name() == "video/x-bayer" else _RAW
    _, width = caps.get_int("width")
    _, height = caps.get_int("height")
    return FORMATS[names[caps.get_string("format")]], width, height


class GStreamerOptions(Options):
    """`[camera.options]` of kind gstreamer."""

    pipeline: str = Field(min_length=1, max_length=4096)


class GStreamerCamera(StreamCamera):
    """Any pipeline that ends in raw video; exposure and format are the pipeline's business."""

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        refuse_settings(settings, "say it in camera.options.pipeline")
        self._pipeline = parse_options(settings, GStreamerOptions).pipeline

    def connect(self) -> GStreamerSource:
        """See `StreamCamera.connect`."""
        return GStreamerSource(load_gst(), self._pipeline, self._clock, self.name, buffers=1)


class CsiOptions(Options):
    """`[camera.options]` of kind csi; what is left out, Argus decides."""

    sensor_mode: int | None = Field(default=None, ge=0, le=63)
    width: int = Field(default=1920, ge=16, le=16384)
    height: int = Field(default=1080, ge=16, le=16384)
    fps: int = Field(default=30, ge=1, le=1000)
    pipeline: str | None = Field(default=None, min_length=1, max_length=4096)


class CsiCamera(StreamCamera):
    """A sensor on a Jetson's CSI port, through the Argus daemon; `camera.uri` is the sensor id."""

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        plain = settings.model_copy(update={"exposure_us": None, "gain_db": None})
        refuse_settings(plain, "Argus gives YUV and runs free")
        self._options = parse_options(settings, CsiOptions)
        if not settings.uri.isdecimal() and settings.uri:
            raise SettingsError(f"camera.uri {settings.uri!r} is no sensor id", "0, 1, ...")

    def connect(self) -> GStreamerSource:
        """See `StreamCamera.connect`."""
        pipeline = self._options.pipeline or csi_pipeline(self._settings, self._options)
        return GStreamerSource(load_gst(), pipeline, self._clock, self.name, buffers=1)


def csi_pipeline(settings: CameraSettings, options: CsiOptions) -> str:
    """The sensor, at a fixed exposure and gain where the settings name them, as BGRx.

    Argus has no way to read them back here; a range of one value pins them, and a value outside
    of the sensor mode's range is refused by nvarguscamerasrc with a warning in its own log.
    """
    source = [f"nvarguscamerasrc sensor-id={settings.uri or '0'}"]
    if options.sensor_mode is not None:
        source.append(f"sensor-mode={options.sensor_mode}")
    if settings.exposure_us is not None:
        nanoseconds = round(settings.exposure_us * 1000)
        source.append(f'exposuretimerange="{nanoseconds} {nanoseconds}"')
    if settings.gain_db is not None:
        factor = 10 ** (settings.gain_db / 20)
        source.append(f'gainrange="{factor:.4g} {factor:.4g}"')
    if settings.exposure_us is not None or settings.gain_db is not None:
        # The digital gain would otherwise make up for what the analogue one may not do.
        source.append('ispdigitalgainrange="1 1" aelock=true')
    size = f"width={options.width},height={options.height},framerate={options.fps}/1"
    return (
        f"{' '.join(source)} ! video/x-raw(memory:NVMM),{size}"
        " ! nvvidconv ! video/x-raw,format=BGRx"
    )
