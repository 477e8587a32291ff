"""GigE Vision and USB3 Vision cameras of any maker, through Aravis 0.8 of the system."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np

from metal_edge.daemon.cameras import CameraError, TornFrameError
from metal_edge.daemon.cameras.device_time import ClockMap
from metal_edge.daemon.cameras.genicam import CHECK, Value, check_genicam, configure, picture
from metal_edge.daemon.cameras.source import Exposure
from metal_edge.daemon.cameras.stream import StreamCamera
from metal_edge.daemon.cameras.system import load_namespace
from metal_edge.daemon.clock import Clock
from metal_edge.domain import TimeSource
from metal_edge.settings import CameraMode, CameraSettings

log = logging.getLogger(__name__)

# GigE Vision's 16-bit block id goes from 1 to 65535 and begins again at 1; 0 is no frame.
_BLOCK_IDS = 65535


class AravisNodes:
    """See `genicam.Nodes`."""

    def __init__(self, aravis: Any, device: Any) -> None:
        self._aravis = aravis
        self._device = device

    def has(self, name: str) -> bool:
        """See `Nodes.has`."""
        return bool(self._device.is_feature_available(name))

    def get(self, name: str) -> Value:
        """See `Nodes.get`."""
        value: Value = self._method("get", name)(name)
        return value

    def set(self, name: str, value: Value) -> None:
        """See `Nodes.set`."""
        self._method("set", name)(name, value)

    def allowed(self, name: str) -> tuple[float, float] | tuple[str, ...] | None:
        """See `Nodes.allowed`."""
        kind = self._kind(name)
        if kind == "enumeration":
            names = self._device.dup_available_enumeration_feature_values_as_strings(name)
            return tuple(names)
        if kind in {"float", "integer"}:
            bounds = getattr(self._device, f"get_{kind}_feature_bounds")(name)
            return float(bounds.min), float(bounds.max)
        return None

    def _method(self, verb: str, name: str) -> Any:
        kind = self._kind(name)
        noun = "string" if kind == "enumeration" else kind
        return getattr(self._device, f"{verb}_{noun}_feature_value")

    def _kind(self, name: str) -> str:
        aravis, node = self._aravis, self._device.get_feature(name)
        if isinstance(node, aravis.GcEnumeration):
            return "enumeration"
        for kind in ("Boolean", "Float", "Integer", "String"):
            if isinstance(node, getattr(aravis, f"Gc{kind}")):
                return kind.lower()
        raise CameraError(f"node {name} holds no value", "leave it out of camera.options")


class AravisSource:
    """One open camera that streams."""

    def __init__(self, settings: CameraSettings, clock: Clock, name: str) -> None:
        self._aravis = load_namespace("Aravis", "0.8")
        self._error: Any = load_namespace("GLib", "2.0").Error
        self._clock = clock
        self._name = name
        self.on_request = (
            settings.mode is CameraMode.TRIGGERED and settings.trigger_source == "software"
        )
        self.never_silent = settings.mode is CameraMode.LATEST
        self._requested_ns = 0
        self._counter = BlockCounter()
        self._buffers = max(10, settings.fifo)
        self._times = ClockMap(self._buffers)
        self._lost = threading.Event()
        self._answers = True
        self._stream: Any = None
        self._handler: int | None = None
        try:
            self._camera: Any = self._find(settings.uri)
        except self._error as error:
            raise self._failed(error) from error
        try:
            self._start(settings)
        except self._error as error:
            self.close()
            raise self._failed(error) from error
        except CameraError:
            self.close()
            raise

    def request(self) -> None:
        """See `Source.request`."""
        self._requested_ns = self._clock.mono_ns()
        try:
            self._camera.software_trigger()
        except self._error as error:
            self._answers = False
            raise self._failed(error) from error

    def read(self, timeout_s: float) -> Exposure | None:
        """See `Source.read`."""
        buffer = self._stream.timeout_pop_buffer(round(timeout_s * 1e6))
        self._answers = buffer is not None or not self.never_silent
        if buffer is None:
            if self._lost.is_set():
                raise CameraError(f"camera {self._name} does not answer any more", CHECK)
            return None
        try:
            return self._exposure(buffer)
        finally:
            # A frame without its first packet would keep the number of the one before it here.
            buffer.set_frame_id(0)
            self._stream.push_buffer(buffer)

    def close(self) -> None:
        """See `Source.close`. Aravis frees sockets and threads when nothing refers to it."""
        try:
            # Each command to a camera that is gone takes seconds, which the next one waits for.
            if self._answers and not self._lost.is_set():
                self._camera.stop_acquisition()
        except self._error as error:  # of a camera that is gone
            log.info("camera %s: %s", self._name, error.message)
        if self._handler is not None:
            self._camera.get_device().disconnect(self._handler)
        self._handler = self._stream = self._camera = None

    def _find(self, uri: str) -> Any:
        aravis = self._aravis
        if not uri:
            aravis.update_device_list()
            known = [aravis.get_device_id(index) for index in range(aravis.get_n_devices())]
            if len(known) != 1:
                raise CameraError(
                    f"camera.uri is empty and there is not exactly one camera"
                    f" ({', '.join(known) or 'none'})",
                    "set camera.uri to an id or an address",
                )
        return aravis.Camera.new(uri or None)

    def _start(self, settings: CameraSettings) -> None:
        aravis, camera, lost = self._aravis, self._camera, self._lost
        device = camera.get_device()
        # Called by a thread of Aravis; must not hold on to this object.
        self._handler = device.connect("control-lost", lambda _device: lost.set())
        # Somebody who was killed may have left it streaming, and so its nodes locked.
        device.execute_command("AcquisitionStop")
        configure(AravisNodes(aravis, device), settings)
        camera.set_acquisition_mode(aravis.AcquisitionMode.CONTINUOUS)
        self._stream = camera.create_stream(None, None)
        payload = camera.get_payload()
        for _ in range(self._buffers):
            self._stream.push_buffer(aravis.Buffer.new_allocate(payload))
        camera.start_acquisition()

    def _exposure(self, buffer: Any) -> Exposure | None:
        now_ns = self._clock.mono_ns()
        status, states = buffer.get_status(), self._aravis.BufferStatus
        if status == states.CLEARED and not self._counter.begun:
            return None  # the end of a frame that began before this stream
        whole = status == states.SUCCESS
        numbered = whole or buffer.get_frame_id() != 0
        seq = self._counter.number(buffer.get_frame_id()) if numbered else None
        if not whole:
            raise TornFrameError(
                f"camera {self._name}: {status.value_nick}",
                "check cable, network card and packet size",
                seq,
            )
        image, pixel_format = picture(
            self._name,
            buffer.get_image_pixel_format(),
            np.frombuffer(buffer.get_data(), np.uint8),
            (buffer.get_image_width(), buffer.get_image_height()),
            seq,
        )
        stamp_ns, source = now_ns, TimeSource.ARRIVAL
        if buffer.get_timestamp():
            stamp_ns, source = self._times.map(buffer.get_timestamp(), now_ns), TimeSource.CAMERA
        earliest_ns = self._requested_ns if self.on_request else stamp_ns
        return Exposure(image, stamp_ns, earliest_ns, source, seq, pixel_format)

    def _failed(self, error: Any) -> CameraError:
        return CameraError(f"camera {self._name}: {error.message}", CHECK)


class BlockCounter:
    """Makes block ids that begin again at 1 into numbers that only grow.

    Attributes:
        begun: there was one.
    """

    def __init__(self) -> None:
        self.begun = False
        self._rounds = 0
        self._last = 0

    def number(self, block_id: int) -> int:
        """The block id, plus the rounds before it."""
        if block_id <= _BLOCK_IDS and self._last - block_id > _BLOCK_IDS // 2:
            self._rounds += 1
        self._last = block_id
        self.begun = True
        return block_id + self._rounds * _BLOCK_IDS


class AravisCamera(StreamCamera):
    """`camera.uri`: an id as `arv-tool-0.8` lists it, or an address; empty where there is one."""

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        check_genicam(settings)

    def connect(self) -> AravisSource:
        """See `StreamCamera.connect`."""
        return AravisSource(self._settings, self._clock, self.name)
