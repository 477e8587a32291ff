"""Where a line keeps what must outlive it: places, and what they are filled by."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.records.evidence import EvidenceStore
from metal_edge.daemon.records.outbox import MemoryOutbox, Outbox
from metal_edge.daemon.records.outbox_sqlite import SqliteOutbox
from metal_edge.daemon.records.storage import Limits
from metal_edge.settings import LineSettings

log = logging.getLogger(__name__)

# After the goodbye to the broker; the disk may hang.
OUTBOX_GOODBYE_S = 0.5
EVIDENCE_GOODBYE_S = 0.3
HOUR_NS = 3_600_000_000_000


def state_folder(settings: LineSettings, environment: Mapping[str, str]) -> Path | None:
    """This station's own folder in systemd's state directory; None without one.

    Named after the whole station, not just its last level: several lines may live in one process,
    and one station's events must never go out under another's name.
    """
    given = environment.get("STATE_DIRECTORY")
    if not given:
        return None
    root = settings.station.topic_root
    mark = hashlib.sha256(root.encode()).hexdigest()[:8]
    return Path(given.split(":")[0]) / f"{settings.station.station}-{mark}"


@dataclass(frozen=True, slots=True)
class Records:
    """`pictures` is None where there is no place for any."""

    outbox: Outbox
    pictures: EvidenceStore | None

    def finish(self) -> None:
        """Before the goodbye to the broker: the last pictures, whose events then still go out."""
        if self.pictures is not None:
            self.pictures.close(EVIDENCE_GOODBYE_S)


def open_records(
    settings: LineSettings, clock: Clock, environment: Mapping[str, str], cleanup: ExitStack
) -> Records:
    """Both, running; `cleanup` closes them. What is wrong with them is their problem."""
    outbox = _open_outbox(settings, clock, environment, cleanup)
    return Records(outbox, _open_evidence(settings, clock, environment, cleanup))


def _open_outbox(
    settings: LineSettings, clock: Clock, environment: Mapping[str, str], cleanup: ExitStack
) -> Outbox:
    """The journal goes to systemd's runtime directory, which lies in memory.

    It survives kill -9 there, and restarts of the service, and no disk can hold up a decision.
    """
    folder = state_folder(settings, environment)
    path = settings.outbox.path or (folder and folder / "outbox.sqlite")
    if path is None:
        log.warning("no outbox.path and no state directory: audit events do not survive a crash")
        memory = MemoryOutbox(settings.mqtt.event_queue)
        cleanup.callback(memory.close, 0.0)
        return memory
    runtime = environment.get("RUNTIME_DIRECTORY")
    ring = None
    if runtime:
        name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
        ring = Path(runtime.split(":")[0]) / f"outbox-{name}.ring"
    limits = Limits(
        max_age_ns=round(settings.outbox.max_age_h * HOUR_NS),
        max_bytes=round(settings.outbox.max_mb * 1e6),
    )
    outbox = SqliteOutbox(path, limits, settings.mqtt.event_queue, clock, ring)
    cleanup.callback(outbox.close, OUTBOX_GOODBYE_S)
    outbox.start()
    return outbox


def _open_evidence(
    settings: LineSettings, clock: Clock, environment: Mapping[str, str], cleanup: ExitStack
) -> EvidenceStore | None:
    """Even with `evidence.keep = "none"` a snapshot may ask for pictures."""
    folder = state_folder(settings, environment)
    path = settings.evidence.path or (folder and folder / "evidence")
    if path is None:
        if settings.evidence.keep != "none":
            log.error("evidence.keep needs evidence.path or a state directory: nothing is kept")
        return None
    limits = Limits(
        max_age_ns=round(settings.evidence.max_age_h * HOUR_NS),
        max_bytes=round(settings.evidence.max_mb * 1e6),
    )
    store = EvidenceStore(path, limits, clock, keep=settings.evidence.keep)
    cleanup.callback(store.close, EVIDENCE_GOODBYE_S)
    store.start()
    return store
