"""A folder of pictures that plays camera: for trying a line out, and for tests."""

from __future__ import annotations

import threading
from pathlib import Path

from pydantic import Field

from metal_edge.daemon.cameras import (
    CameraError,
    CameraTimeoutError,
    EndOfStreamError,
    TornFrameError,
)
from metal_edge.daemon.cameras.options import Options, parse_options, refuse_settings
from metal_edge.daemon.clock import Clock
from metal_edge.domain import Frame
from metal_edge.errors import MetalEdgeError
from metal_edge.imaging import read_image
from metal_edge.settings import CameraMode, CameraSettings

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
_NUMBERS = r"^([0-9]{1,9}(,[0-9]{1,9})*)?$"


class FolderOptions(Options):
    """`[camera.options]`: what goes wrong at the camera's own pace, to try out how a line takes it.

    Exposures are numbered from 1, in lists such as `"3,7"`.
    """

    drop: str = Field(default="", pattern=_NUMBERS)  # exposed, but no frame arrives
    torn: str = Field(default="", pattern=_NUMBERS)  # a piece of the frame is missing
    restart: str = Field(default="", pattern=_NUMBERS)  # the counter begins anew at this one


class FolderCamera:
    """Shows the pictures of `settings.uri` in the order of their names.

    Triggered: one picture per trigger, the one whose stem is the part id if there is one,
    otherwise the next in order. Once a part id has named a picture, one that names none gets
    none: another part's picture must not stand in for it. Free run: the next picture at every
    tick of `settings.fps`. `hardware` is the same, each tick an exposure of a wired trigger. The
    exposure time is that of the trigger or tick.
    """

    live = False

    def __init__(self, settings: CameraSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._files: list[Path] = []
        self._next = 0
        self._by_part_id = False
        self._seq = 0
        self._asked: tuple[Path | None, int] | None = None
        self._due_ns = 0
        self._closed = threading.Event()
        refuse_settings(settings, "a picture is as it is", wired=True)
        options = parse_options(settings, FolderOptions)
        self._drop, self._torn = _numbers(options.drop), _numbers(options.torn)
        self._restart = _numbers(options.restart)
        self._exposures = 0

    def open(self) -> None:
        """See `Camera.open`: lists the folder, once."""
        folder = Path(self._settings.uri)
        if not self._settings.uri or not folder.is_dir():
            raise CameraError(
                f"camera folder {self._settings.uri!r} not found", "set camera.uri to a folder"
            )
        self._files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if not self._files:
            raise CameraError(
                f"camera folder {folder} holds no pictures",
                f"put {', '.join(sorted(SUFFIXES))} files there",
            )
        self._closed.clear()
        self._due_ns = self._clock.mono_ns()

    def trigger(self, part_id: str | None) -> None:
        """See `Camera.trigger`: chooses the picture."""
        chosen = next((p for p in self._files if p.stem == part_id), None)
        self._by_part_id = self._by_part_id or chosen is not None
        if chosen is None and not self._by_part_id:
            chosen = self._advance()
        self._asked = (chosen, self._clock.mono_ns())

    def grab(self, timeout_s: float) -> Frame:
        """See `Camera.grab`."""
        if self._settings.mode is not CameraMode.TRIGGERED:
            return self._tick(timeout_s)
        if self._asked is None:
            raise CameraTimeoutError("the folder camera was not triggered", "trigger it first")
        (path, t_mono_ns), self._asked = self._asked, None
        if path is None:
            if self._by_part_id:
                raise CameraTimeoutError("no picture is named like this part", "add it")
            raise CameraTimeoutError("no more images", "set camera.loop or add pictures")
        return self._read(path, t_mono_ns)

    def close(self) -> None:
        """See `Camera.close`."""
        self._closed.set()

    def _tick(self, timeout_s: float) -> Frame:
        """The next picture, when its time has come."""
        wait_s = (self._due_ns - self._clock.mono_ns()) / 1e9
        if wait_s > timeout_s:
            self._closed.wait(timeout_s)
            raise CameraTimeoutError("no picture is due yet", "raise camera.fps")
        if wait_s > 0:
            self._closed.wait(wait_s)
        path = self._advance()
        if path is None:
            raise EndOfStreamError(f"end of {self._settings.uri}", "set camera.loop to go on")
        now_ns = self._clock.mono_ns()
        self._due_ns = max(self._due_ns + round(1e9 / self._settings.fps), now_ns)
        self._spoil()
        return self._read(path, now_ns)

    def _spoil(self) -> None:
        """What the options want to go wrong with this exposure."""
        self._exposures += 1
        if self._exposures in self._restart:
            self._seq = 0
        if self._exposures in self._drop:
            self._seq += 1
            raise CameraTimeoutError("this exposure is dropped", "see camera.options.drop")
        if self._exposures in self._torn:
            self._seq += 1
            raise TornFrameError("this frame is torn", "see camera.options.torn", self._seq)

    def _advance(self) -> Path | None:
        if self._next >= len(self._files) and self._settings.loop:
            self._next = 0
        if self._next >= len(self._files):
            return None
        self._next += 1
        return self._files[self._next - 1]

    def _read(self, path: Path, t_mono_ns: int) -> Frame:
        self._seq += 1
        try:
            image = read_image(path)
        except MetalEdgeError as error:
            raise CameraError(error.what, error.remedy) from error
        utc_ns = self._clock.utc_ns() - (self._clock.mono_ns() - t_mono_ns)
        return Frame(image, self._seq, self._settings.camera_id, path.name, t_mono_ns, utc_ns)


def _numbers(text: str) -> frozenset[int]:
    return frozenset(int(number) for number in text.split(",") if number)
