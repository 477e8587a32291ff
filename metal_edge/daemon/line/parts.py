"""What a line is made of, all of it ready to use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.line.bell import Bell
from metal_edge.daemon.line.model import Models, View
from metal_edge.daemon.line.reporter import Reporter
from metal_edge.daemon.line.triggers import TriggerQueue
from metal_edge.daemon.mqtt.publisher import Publisher
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.settings import LineSettings


class StopFlag:
    """Set by a signal handler, read by the loop; nothing that a handler could deadlock on."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        """True once the daemon was asked to stop."""
        return self._requested

    def request(self, signum: int = 0, frame: object = None) -> None:
        """Usable as a signal handler."""
        del signum, frame
        self._requested = True


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one line.

    Attributes:
        views: in the settings' order, cameras open.
        models: by camera_id, what the views serve with at the start.
        bell: wakes the deciding thread; the queue rings it.
        notes: problems that do not keep the line from inspecting, asked at each heartbeat.
    """

    settings: LineSettings
    views: tuple[View, ...]
    models: Models
    publisher: Publisher
    reporter: Reporter
    queue: TriggerQueue
    bell: Bell
    notifier: Notifier
    clock: Clock
    stop: StopFlag
    notes: Callable[[], tuple[str, ...]] = tuple
