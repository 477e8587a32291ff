"""Pictures of parts, kept for people. A thread writes them; a decision never waits for it.

`PATH/ab/cd/abcd….png`: files are named by the SHA-256 of their content, so nothing that a PLC or
a camera says ever becomes a path. `PATH/evidence.sqlite` says which belong to which part.

What cannot be kept (too fast, disk nearly full, or broken) is left out, counted, and a problem; its
event then has `evidence` null. An event names only files that are on the disk.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.records.evidence_index import UNKNOWN, EvidenceIndex, Look
from metal_edge.daemon.records.evidence_pictures import (
    Shown,
    encode_frame,
    encode_map,
    encode_overlay,
)
from metal_edge.daemon.records.storage import (
    Limits,
    UnusableError,
    beside,
    hold,
    is_corrupt,
    put_aside,
    what_is_wrong,
)
from metal_edge.domain import Verdict
from metal_edge.errors import MetalEdgeError
from metal_edge.files import write_bytes

log = logging.getLogger(__name__)

INDEX = "evidence.sqlite"
QUEUE = 8
# Left free on the disk, whatever `evidence.max_mb` says: the outbox needs room too.
FREE_BYTES = 512_000_000
IDLE_S = 60.0
# After pictures had to be left out, the problem is told for so long.
TELL_NS = 10_000_000_000
# One part's pictures take longer: the disk hangs. Its event must not wait for that.
HANGS_NS = 5_000_000_000

T = TypeVar("T")
Done = Callable[[dict[str, Any] | None], None]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One part: the payload of its decision, and what each view saw."""

    decision: dict[str, Any]
    shown: Sequence[Shown]


@dataclass(frozen=True, slots=True)
class EvidenceStats:
    """How the store is doing: parts waiting, kept, left out; and what is wrong, if anything."""

    waiting: int
    kept: int
    left_out: int
    problem: str | None


class EvidenceStore:
    """See the module.

    Args:
        path: folder; made when the first picture comes.
        limits: the oldest parts give way.
        clock: its monotonic side decides; the wall clock only names damaged indexes.
        keep: `none`, `reject` (what did not pass) or `all`; see `wants`.
        free_bytes: of the disk, to be left free.
        queue: parts that may wait; more are left out.
    """

    def __init__(
        self,
        path: Path,
        limits: Limits,
        clock: Clock,
        *,
        keep: str = "all",
        free_bytes: int = FREE_BYTES,
        queue: int = QUEUE,
    ) -> None:
        self._path = path
        self._limits = limits
        self._clock = clock
        self._keep_which = keep
        self._free_bytes = free_bytes
        self._queue = queue
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Case, Done]] = deque()
        self._in_hand: Done | None = None
        self._in_hand_ns = 0
        self._kept = 0
        self._left_out = 0
        self._problem: str | None = None
        self._problem_ns = 0
        self._ended = False
        self._index: EvidenceIndex | None = None
        self._lock_file: int | None = None
        self._work = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evidence", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wants(self, verdict: Verdict) -> bool:
        """Whether the settings ask for pictures of such parts. Others may be offered, too."""
        if self._keep_which == "reject":
            return verdict is not Verdict.PASS
        return self._keep_which == "all"

    def offer(self, case: Case, done: Done) -> None:
        """Takes the pictures of one part, if there is room.

        Args:
            case: nobody may change its pictures afterwards.
            done: called once, from any thread, perhaps at once: with what the event is to say
                under `evidence`, or None when the pictures were left out.
        """
        self._let_go(HANGS_NS)
        with self._lock:
            room = not self._ended and len(self._waiting) < self._queue
            if room:
                self._waiting.append((case, done))
        if room:
            self._work.set()
        else:
            self._leave_out("pictures come too fast")
            done(None)

    def stats(self) -> EvidenceStats:
        """See EvidenceStats."""
        self._let_go(HANGS_NS)
        with self._lock:
            recent = self._clock.mono_ns() - self._problem_ns < TELL_NS
            problem = self._problem if recent else None
            return EvidenceStats(len(self._waiting), self._kept, self._left_out, problem)

    def close(self, timeout_s: float) -> None:
        """Writes what waits, within the time; what is left is told that it was left out."""
        self._stop.set()
        self._work.set()
        self._thread.join(timeout_s)
        self._let_go(0)
        with self._lock:
            self._ended = True
            left = list(self._waiting)
            self._waiting.clear()
        for _, done in left:
            self._leave_out("stopped")
            done(None)

    def _leave_out(self, why: str) -> None:
        with self._lock:
            self._left_out += 1
            new = why != self._problem
            self._problem, self._problem_ns = why, self._clock.mono_ns()
        if new:
            log.error("evidence: %s (%s); pictures are left out", why, self._path)

    def _let_go(self, after_ns: int) -> None:
        """Tells whoever waits for a part that the thread has been busy with for too long."""
        with self._lock:
            done = self._in_hand
            if done is None or self._clock.mono_ns() - self._in_hand_ns < after_ns:
                return
            self._in_hand = None
        self._leave_out("the disk does not answer")
        done(None)

    # What follows belongs to the thread.

    def _run(self) -> None:
        _be_nice()
        while True:
            case = self._next()
            if case is not None:
                self._finish(self._keep(case))
            elif self._stop.is_set():
                break
            else:
                self._work.wait(IDLE_S)
                self._work.clear()
                if self._index is not None:
                    self._guarded(self._make_room)
        if self._index is not None:
            self._index.close()
        if self._lock_file is not None:
            os.close(self._lock_file)

    def _next(self) -> Case | None:
        with self._lock:
            if not self._waiting:
                return None
            case, self._in_hand = self._waiting.popleft()
            self._in_hand_ns = self._clock.mono_ns()
            return case

    def _finish(self, names: dict[str, Any] | None) -> None:
        with self._lock:
            done, self._in_hand = self._in_hand, None
        if done is not None:
            done(names)

    def _keep(self, case: Case) -> dict[str, Any] | None:
        names = self._guarded(lambda: self._write(case))
        if names is None:
            return None
        with self._lock:
            self._kept += 1
            self._problem = None
        first = next(iter(names.values()))
        return first if len(names) == 1 else {**first, "views": names}

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """A broken disk costs pictures, and nothing else."""
        try:
            return work()
        except (sqlite3.Error, OSError, UnusableError, MetalEdgeError, ValueError) as error:
            # Files are written by a function that turns an OSError into a sentence for people.
            cause = error.__cause__ if isinstance(error, MetalEdgeError) else None
            self._leave_out(what_is_wrong(cause if isinstance(cause, OSError) else error))
            if is_corrupt(error):
                self._begin_anew()
        except Exception:
            log.exception("evidence: unexpected")
            self._leave_out("failed")
        return None

    def _write(self, case: Case) -> dict[str, dict[str, str | None]]:
        """By camera, the digests of its pictures."""
        index = self._open()
        self._make_room()
        found: dict[str, dict[str, str | None]] = {}
        for shown in case.shown:
            heat = shown.anomaly_map
            pictures = {
                "raw": (encode_frame(shown.image), ".png"),
                "map": (None if heat is None else encode_map(heat), ".png"),
                "overlay": (encode_overlay(shown), ".jpg"),
            }
            names = self._write_look(index, case.decision, shown.camera_id, pictures)
            found[shown.camera_id] = {
                kind: None if name is None else Path(name).stem for kind, name in names.items()
            }
        return found

    def _write_look(
        self,
        index: EvidenceIndex,
        decision: dict[str, Any],
        camera_id: str,
        pictures: dict[str, tuple[bytes | None, str]],
    ) -> dict[str, str | None]:
        """Files first, then the index; nothing stays of a look that cannot be kept whole."""
        names: dict[str, str | None] = {}
        sizes: dict[str, int] = {}
        new: list[Path] = []
        try:
            for kind, (content, suffix) in pictures.items():
                names[kind] = None
                if content is None:
                    continue
                names[kind] = name = hashlib.sha256(content).hexdigest() + suffix
                sizes[name] = len(content)
                path = place_of(self._path, name)
                if not path.exists():
                    new.append(path)
                    write_bytes(path, content)
            index.add(_look(decision, camera_id, names), sizes)
        except BaseException:
            for path in new:
                path.unlink(missing_ok=True)
            raise
        return names

    def _open(self) -> EvidenceIndex:
        if self._lock_file is None:
            self._lock_file = hold(beside(self._path / INDEX, ".lock"))
        if self._index is None:
            self._index = EvidenceIndex.open(self._path / INDEX, self._clock)
            self._adopt(self._index)
        return self._index

    def _adopt(self, index: EvidenceIndex) -> None:
        """Files that the index does not know, after a crash or a damaged index, age from now."""
        known = index.known()
        for path in sorted(self._path.glob("??/??/*")):
            if path.suffix == ".partial":
                path.unlink()
            elif path.name not in known:
                look = Look("", None, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 0, raw=path.name)
                index.add(look, {path.name: path.stat().st_size})

    def _make_room(self) -> None:
        """Deletes what is too old or too much.

        Raises:
            OSError: the disk is nearly full with things that are not ours.
        """
        index = self._open()
        while (gone := index.take_oldest(self._limits)) is not None:
            for name in gone:
                place_of(self._path, name).unlink(missing_ok=True)
        disk = os.statvfs(self._path)
        if disk.f_bavail * disk.f_frsize < self._free_bytes:
            raise UnusableError("disk nearly full")

    def _begin_anew(self) -> None:
        """The damaged index stays for whoever can read it; its pictures stay too."""
        if self._index is not None:
            self._index.close()
            self._index = None
        try:
            log.error("evidence: %s", put_aside(self._path / INDEX, self._clock.utc_ns()))
        except OSError as error:
            log.error("evidence: the damaged index cannot be put aside (%s)", error)


def place_of(path: Path, name: str) -> Path:
    """Where the file of that name lies in the folder `path`."""
    return path / name[:2] / name[2:4] / name


def _look(decision: dict[str, Any], camera_id: str, names: dict[str, str | None]) -> Look:
    return Look(
        event_id=decision["event_id"],
        part_id=decision["part_id"],
        trigger_id=decision["trigger_id"],
        camera_id=camera_id,
        verdict=decision["verdict"],
        reason=decision["reason"],
        t_ns=decision["t_publish_ns"],
        **names,
    )


def _be_nice() -> None:
    """Encoding may take what the deciding threads leave. On Linux this is a thread's own value."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    except OSError as error:
        log.debug("evidence: no lower priority (%s)", error)
