"""A camera above the simulated conveyor that sees what is truly there; kind `scene`.

Which part stands in front of it comes from the PLC's photo-eye file, never from the part id in
the trigger: a trigger that comes late gets a picture of another part, as on a real line. A
control file says what is wrong with the camera. Each exposure is written down, with what it
shows, before anybody can judge it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt

from metal_edge.daemon.cameras import CameraError, CameraTimeoutError, TornFrameError
from metal_edge.daemon.clock import Clock
from metal_edge.daemon.line.triggers import TriggerQueue
from metal_edge.demo.gate_log import LineFile
from metal_edge.domain import Frame, Image, TimeSource
from metal_edge.settings import CameraSettings

SIZE = 32
GOOD_LEVEL = 51  # scores about 0.2 with tests/support/tiny_bundle.py; a white spot scores 1
BRIGHT_LEVEL = 100  # about 0.4: still good, and slow with the bundle's fault `slow`
EVERY, BAD = 5, 3  # part 3 of each five is bad
GOLDEN_BAD = "G-bad"


def is_bad(part_id: str) -> bool:
    """The truth about a part, which neither PLC nor daemon know."""
    if part_id.startswith("G-"):
        return part_id == GOLDEN_BAD
    return int(part_id.removeprefix("P-")) % EVERY == BAD


def sabotage(what: str) -> None:
    """Breaks something in the daemon around its MQTT callbacks, as a defect there would."""
    if what == "sabotage-command":
        _raise_in(TriggerQueue, "offer", times=5)
    elif what == "sabotage-thread":
        _raise_in(mqtt.Client, "_handle_pubackcomp", times=1)


def _raise_in(owner: type, name: str, times: int) -> None:
    """A method that raises so many times, and then does its work again."""
    proper = getattr(owner, name)
    left = [times]

    def broken(*args: Any, **kwargs: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise ValueError(f"sabotage of {name}")
        return proper(*args, **kwargs)

    setattr(owner, name, broken)


class PhotoEye:
    """The tail of the PLC's photo-eye file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._offset = 0
        self._rest = b""
        self._last: dict[str, Any] | None = None

    def in_front(self) -> str | None:
        """The part that passed last; None before the first."""
        if self._fd is None:
            if not self._path.exists():
                return None
            self._fd = os.open(self._path, os.O_RDONLY)
        while chunk := os.pread(self._fd, 65536, self._offset):
            self._offset += len(chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if lines:
                self._last = json.loads(lines[-1])
        return None if self._last is None else str(self._last["part_id"])


class SceneCamera:
    """Options: `eye` and `control` (files to read), `log` (a folder for its own records)."""

    live = True  # its sensor has noise: no two pictures are alike

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._eye = PhotoEye(Path(str(settings.options["eye"])))
        self._control = Path(str(settings.options["control"]))
        self._log_folder = Path(str(settings.options["log"]))
        self._log: LineFile | None = None
        self._noise = np.random.default_rng()
        self._frozen: Image | None = None
        self._pending: tuple[str, str | None, int] | None = None  # frame id, part, time
        self._seq = 0
        self._sabotaged = ""

    def open(self) -> None:
        """Each start writes a file of its own: the last one of a killed process stays whole."""
        self._log_folder.mkdir(exist_ok=True)
        self._log = LineFile(self._log_folder / f"camera-{os.getpid()}-{time.time_ns()}.jsonl")

    def close(self) -> None:
        self._log = None

    def trigger(self, part_id: str | None) -> None:
        """Exposes now, whatever stands there."""
        fault = self._fault()
        if fault == "raise":
            raise RuntimeError("a defect in the camera's driver")
        if fault == "dead":
            raise CameraError("the scene camera is unplugged", "plug it in")
        if fault != self._sabotaged:
            self._sabotaged = fault
            sabotage(fault)
        self._seq += 1
        part = self._eye.in_front()
        self._pending = (f"{part or 'belt'}@{os.getpid()}.{self._seq}", part, self._clock.mono_ns())

    def grab(self, timeout_s: float) -> Frame:
        fault = self._fault()
        if fault == "dead":
            raise CameraError("the scene camera is unplugged", "plug it in")
        if self._pending is None or fault == "stall":
            time.sleep(timeout_s)  # as a driver does that waits for its frame
            raise CameraTimeoutError("the scene camera gave no frame", "look at it")
        (frame_id, part, t_ns), self._pending = self._pending, None
        if fault == "slow":
            time.sleep(0.7)  # in the driver, deaf to `timeout_s`
        if fault == "stale":
            t_ns -= 5_000_000_000
        image, faithful = self._picture(part, fault)
        assert self._log is not None
        shown = part if faithful else None
        self._log.write({"frame_id": frame_id, "shows": shown, "t_ns": t_ns, "fault": fault})
        if fault == "half":
            raise TornFrameError("half of the buffer is missing", "check the cable", seq=self._seq)
        return Frame(
            image,
            self._seq,
            self._settings.camera_id,
            frame_id,
            t_ns,
            self._clock.utc_ns() - (self._clock.mono_ns() - t_ns),
            TimeSource.CAMERA,
        )

    def _picture(self, part: str | None, fault: str) -> tuple[Image, bool]:
        """Pixels, and whether they show what stands there."""
        noise = self._noise.integers(-3, 4, (SIZE, SIZE, 3))
        if fault == "black":
            return np.abs(noise).astype(np.uint8), False
        if fault == "saturated":
            return np.full((SIZE, SIZE, 3), 255, np.uint8), False
        if fault == "frozen" and self._frozen is not None:
            return self._frozen.copy(), False
        level = BRIGHT_LEVEL if fault == "bright" else GOOD_LEVEL
        image = (np.full((SIZE, SIZE, 3), level) + noise).astype(np.uint8)
        if part is not None and is_bad(part):
            image[8:16, 8:16] = 255
        if fault == "wrong_size":
            return np.ascontiguousarray(image[: SIZE // 2]), False
        if part is None or not is_bad(part):
            self._frozen = image  # a picture that would pass: the worst one to freeze on
        return image, fault not in {"half", "stale"}

    def _fault(self) -> str:
        return self._control.read_text(encoding="utf-8") if self._control.exists() else ""
