"""The state of one line, which commands and the deciding thread both change."""

from __future__ import annotations

import logging
import threading

from metal_edge.daemon.deciding.transitions import Event, State, may_pass, next_state, release
from metal_edge.domain import Decision

log = logging.getLogger(__name__)


class LineState:
    """Holds the state; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = State.STARTING
        self._disarmed_because = ""
        self._disarm_when_ready = False

    @property
    def now(self) -> State:
        """The state at this moment."""
        return self._state

    @property
    def healthy(self) -> bool:
        """True where a good part may be let go: what the heartbeat tells the PLC."""
        return may_pass(self._state)

    @property
    def disarmed_because(self) -> str:
        """What the last `disarm` gave as its reason."""
        return self._disarmed_because

    def tell(self, event: Event, because: str = "") -> State:
        """What happened; gives the new state. A `disarm` during the start counts from then on."""
        with self._lock:
            before, self._state = self._state, next_state(self._state, event)
            if event is Event.DISARM:
                self._disarmed_because = because
            if self._state is State.STARTING and event in (Event.DISARM, Event.ARM):
                self._disarm_when_ready = event is Event.DISARM
            if event is Event.READY and self._disarm_when_ready:
                self._state = next_state(self._state, Event.DISARM)
                self._disarm_when_ready = False
            after = self._state
        if after is not before:
            log.info("the line goes from %s to %s (%s)", before.value, after.value, event.value)
        return after

    def release(self, decision: Decision) -> Decision:
        """The decision as this moment's state lets it out."""
        return release(self._state, decision)
