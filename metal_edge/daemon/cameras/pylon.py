"""Basler cameras through pypylon (extra `pylon`)."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import numpy as np

from metal_edge.daemon.cameras import CameraError, TornFrameError
from metal_edge.daemon.cameras.device_time import ClockMap
from metal_edge.daemon.cameras.genicam import CHECK, Value, check_genicam, configure, picture
from metal_edge.daemon.cameras.source import Exposure
from metal_edge.daemon.cameras.stream import StreamCamera
from metal_edge.daemon.clock import Clock
from metal_edge.domain import TimeSource
from metal_edge.settings import CameraMode, CameraSettings

log = logging.getLogger(__name__)

_TICK_NODE = "GevTimestampTickFrequency"  # older GigE cameras; all others count nanoseconds
_NO_COUNTER = 2**64 - 1


def load_pypylon() -> tuple[Any, Any]:
    """The modules `pylon` and `genicam`.

    Raises:
        CameraError: not installed.
    """
    try:
        return importlib.import_module("pypylon.pylon"), importlib.import_module("pypylon.genicam")
    except ImportError as error:
        raise CameraError(
            f"pypylon cannot be imported ({error})", "pip install 'metal-edge[pylon]'"
        ) from error


class PylonNodes:
    """See `genicam.Nodes`."""

    def __init__(self, genicam: Any, node_map: Any) -> None:
        self._genicam = genicam
        self._map = node_map

    def has(self, name: str) -> bool:
        """See `Nodes.has`."""
        node = self._map.GetNode(name)
        return node is not None and bool(self._genicam.IsReadable(node))

    def get(self, name: str) -> Value:
        """See `Nodes.get`."""
        value: Value = self._map.GetNode(name).GetValue()
        return value

    def set(self, name: str, value: Value) -> None:
        """See `Nodes.set`."""
        self._map.GetNode(name).SetValue(value)

    def allowed(self, name: str) -> tuple[float, float] | tuple[str, ...] | None:
        """See `Nodes.allowed`."""
        node = self._map.GetNode(name)
        if hasattr(node, "GetSymbolics"):
            return tuple(node.GetSymbolics())
        if hasattr(node, "GetMin"):
            return float(node.GetMin()), float(node.GetMax())
        return None


class PylonSource:
    """One open camera that grabs."""

    def __init__(self, settings: CameraSettings, clock: Clock, name: str) -> None:
        self._pylon, self._genicam = load_pypylon()
        self._clock = clock
        self._name = name
        self.on_request = (
            settings.mode is CameraMode.TRIGGERED and settings.trigger_source == "software"
        )
        self.never_silent = settings.mode is CameraMode.LATEST
        self._requested_ns = 0
        self._last_id: int | None = None
        self._buffers = max(10, settings.fifo)
        self._times = ClockMap(self._buffers)
        try:
            self._camera = self._pylon.InstantCamera(self._find(settings.uri))
            self._start(settings)
        except self._genicam.GenericException as error:
            raise self._failed(error) from error

    def request(self) -> None:
        """See `Source.request`."""
        self._requested_ns = self._clock.mono_ns()
        try:
            self._camera.TriggerSoftware.Execute()
        except self._genicam.GenericException as error:
            raise self._failed(error) from error

    def read(self, timeout_s: float) -> Exposure | None:
        """See `Source.read`."""
        try:
            result = self._camera.RetrieveResult(
                round(timeout_s * 1000), self._pylon.TimeoutHandling_Return
            )
            if result is None or not result.IsValid():
                if self._camera.IsCameraDeviceRemoved():
                    raise CameraError(f"camera {self._name} was removed", CHECK)
                return None
            try:
                return self._exposure(result)
            finally:
                result.Release()
        except self._genicam.GenericException as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """See `Source.close`."""
        try:
            self._camera.StopGrabbing()
            self._camera.Close()
        except self._genicam.GenericException as error:  # of a camera that is gone
            log.info("camera %s: %s", self._name, _first_line(error))
        self._camera.DestroyDevice()

    def _find(self, uri: str) -> Any:
        factory = self._pylon.TlFactory.GetInstance()
        devices = factory.EnumerateDevices()
        found = [device for device in devices if not uri or uri in _names(device)]
        if len(found) == 1:
            return factory.CreateDevice(found[0])
        known = ", ".join(device.GetSerialNumber() for device in devices) or "none"
        what = f"{uri!r} is not" if uri else "camera.uri is empty and there is not exactly one"
        raise CameraError(
            f"camera {what} among the Basler cameras ({known})",
            "set camera.uri to a serial number, a user-defined name or an address",
        )

    def _start(self, settings: CameraSettings) -> None:
        camera, pylon = self._camera, self._pylon
        try:
            camera.Open()
            nodes = PylonNodes(self._genicam, camera.GetNodeMap())
            configure(nodes, settings)
            self._tick_ns = 1e9 / float(nodes.get(_TICK_NODE)) if nodes.has(_TICK_NODE) else 1.0
            camera.MaxNumBuffer.SetValue(self._buffers)
            newest = settings.mode is CameraMode.LATEST
            camera.StartGrabbing(
                pylon.GrabStrategy_LatestImageOnly if newest else pylon.GrabStrategy_OneByOne
            )
        except (CameraError, self._genicam.GenericException):
            self.close()
            raise

    def _exposure(self, result: Any) -> Exposure:
        now_ns = self._clock.mono_ns()
        seq = self._counter(result)
        if not result.GrabSucceeded():
            raise TornFrameError(
                f"camera {self._name}: {result.GetErrorDescription()}",
                "check cable, network card and packet size",
                seq,
            )
        image, pixel_format = picture(
            self._name,
            result.GetPixelType(),
            np.frombuffer(result.GetBuffer(), np.uint8),
            (result.GetWidth(), result.GetHeight()),
            seq,
        )
        stamp_ns, source = now_ns, TimeSource.ARRIVAL
        ticks = result.GetTimeStamp()
        if ticks:
            stamp_ns = self._times.map(round(ticks * self._tick_ns), now_ns)
            source = TimeSource.CAMERA
        earliest_ns = self._requested_ns if self.on_request else stamp_ns
        return Exposure(image, stamp_ns, earliest_ns, source, seq, pixel_format)

    def _counter(self, result: Any) -> int | None:
        """The block id; emulated cameras leave it at zero, USB cameras begin there."""
        block_id = int(result.GetBlockID())
        last, self._last_id = self._last_id, block_id
        none = block_id == _NO_COUNTER or (block_id == 0 and last == 0)
        return None if none else block_id

    def _failed(self, error: Exception) -> CameraError:
        return CameraError(f"camera {self._name}: {_first_line(error)}", CHECK)


def _names(device: Any) -> set[str]:
    names = {device.GetSerialNumber(), device.GetUserDefinedName(), device.GetFullName()}
    if device.IsIpAddressAvailable():
        names.add(device.GetIpAddress())
    return names


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class PylonCamera(StreamCamera):
    """`camera.uri`: serial number, user-defined name or address; empty where there is one."""

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        check_genicam(settings)

    def connect(self) -> PylonSource:
        """See `StreamCamera.connect`."""
        return PylonSource(self._settings, self._clock, self.name)
