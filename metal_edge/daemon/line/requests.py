"""What other threads ask of the deciding thread, to be done between two parts."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from metal_edge.daemon.line.bell import Bell
from metal_edge.daemon.line.model import Done, Models
from metal_edge.domain import Decision

log = logging.getLogger(__name__)

MAX_SNAPSHOTS = 4
_T = TypeVar("_T")

# Hears of the decision whose pictures were kept; of None when the line stopped before.
Taken = Callable[[Decision | None], None]


class Requests:
    """A mailbox for the deciding thread. What is not done when the line stops is told so."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._lock = threading.Lock()
        self._models: deque[tuple[Models, Done]] = deque()
        self._snapshots: list[Taken] = []
        self._ended = False
        self._mended = False

    def mend(self) -> None:
        """Somebody has seen to what failed; it gets another chance."""
        with self._lock:
            self._mended = True
        self._bell.ring()

    def mended(self) -> bool:
        """Whether `mend` was called, once."""
        with self._lock:
            mended, self._mended = self._mended, False
        return mended

    def replace(self, models: Models, done: Done) -> None:
        """New models. `done` gets them back at once when the line has stopped."""
        with self._lock:
            if not self._ended:
                self._models.append((models, done))
                self._bell.ring()
                return
        self.hand_back(done, models)

    def snapshot(self, taken: Taken) -> bool:
        """Pictures of the next part; False when too many wait, or the line has stopped."""
        with self._lock:
            if self._ended or len(self._snapshots) >= MAX_SNAPSHOTS:
                return False
            self._snapshots.append(taken)
            return True

    def waiting(self) -> bool:
        """True when something is to be done between two parts."""
        return bool(self._models) or self._mended

    def next_models(self) -> tuple[Models, Done] | None:
        """The oldest replacement that is asked for."""
        with self._lock:
            return self._models.popleft() if self._models else None

    def hand_back(self, done: Done, models: Models) -> None:
        """Tells who asked for a replacement that nobody uses these models any more."""
        _call(done, models)

    def wants_pictures(self) -> bool:
        """True when a snapshot waits."""
        return bool(self._snapshots)

    def taken(self, decision: Decision | None) -> None:
        """Tells everybody who waits for a snapshot."""
        with self._lock:
            waiting, self._snapshots = self._snapshots, []
        for tell in waiting:
            _call(tell, decision)

    def end(self) -> None:
        """The line has stopped."""
        with self._lock:
            self._ended = True
            left = list(self._models)
            self._models.clear()
        for models, done in left:
            self.hand_back(done, models)
        self.taken(None)


def _call(told: Callable[[_T], None], what: _T) -> None:
    """A listener's mistake must not end the line that tells it."""
    try:
        told(what)
    except Exception:
        log.exception("the answer to a request failed")
