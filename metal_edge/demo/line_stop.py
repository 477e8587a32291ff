"""When the PLC stops the line, and what it asks for before parts run again. Pure, no I/O.

A trip of the link (gate.py) rejects parts and heals by itself. This is the latch behind it:
what lasts too long stops the conveyor, and only a checked new daemon or a person starts it.
The table is the one in docs/fail-safe.md; `now` is CLOCK_MONOTONIC in ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from metal_edge.demo.gate import Cause, GateRecord
from metal_edge.errors import SettingsError


class LineState(StrEnum):
    """What the conveyor does."""

    RUNNING = "running"
    STOPPED = "stopped"
    CHECKING = "checking"


class LineEvent(StrEnum):
    """What may change that."""

    LINK_DOWN_TOO_LONG = "link down for N seconds"
    TOO_MANY_REJECTS = "K rejects in a row"
    NEW_SESSION_ARMED = "link armed by a new session"
    LINK_LOST = "link not armed"
    GOLDEN_RIGHT = "golden parts right"
    GOLDEN_WRONG = "golden parts wrong"
    OPERATOR = "operator, link armed"


# Every other pair changes nothing.
TRANSITIONS: dict[tuple[LineState, LineEvent], LineState] = {
    (LineState.RUNNING, LineEvent.LINK_DOWN_TOO_LONG): LineState.STOPPED,
    (LineState.RUNNING, LineEvent.TOO_MANY_REJECTS): LineState.STOPPED,
    (LineState.STOPPED, LineEvent.NEW_SESSION_ARMED): LineState.CHECKING,
    (LineState.STOPPED, LineEvent.OPERATOR): LineState.RUNNING,
    (LineState.CHECKING, LineEvent.GOLDEN_RIGHT): LineState.RUNNING,
    (LineState.CHECKING, LineEvent.GOLDEN_WRONG): LineState.STOPPED,
    (LineState.CHECKING, LineEvent.LINK_LOST): LineState.STOPPED,
    (LineState.CHECKING, LineEvent.OPERATOR): LineState.RUNNING,
}


@dataclass(frozen=True, slots=True)
class StopSettings:
    """When to stop, and who may start again.

    Attributes:
        after_ns: the link was not armed for so long; None never stops for that. The default
            outlasts a broker's restart (1.5 keepalives, and up to 5 s until all are back).
        after_rejects: so many parts in a row, for whatever cause; None never stops for that.
        golden: part ids of a known good and a known bad part that let a new session in.
        operator: whether an acknowledgement starts the line.
    """

    after_ns: int | None = 10_000_000_000
    after_rejects: int | None = 50
    golden: tuple[str, str] | None = None
    operator: bool = True

    def __post_init__(self) -> None:
        """Refuses what would never stop by mistake, or prove nothing."""
        if self.after_ns is not None and self.after_ns < 0:
            raise SettingsError("the time to a stop is negative", "give seconds, or never")
        if self.after_rejects is not None and self.after_rejects < 1:
            raise SettingsError("the count to a stop is below 1", "give 1 or more, or never")
        if self.golden is not None and self.golden[0] == self.golden[1]:
            raise SettingsError("the golden parts are one and the same", "name two parts")


class LineStop:
    """The latch. Not thread-safe: the conveyor's thread owns it.

    Attributes:
        state: what the conveyor must do now.
        why: the event that stopped the line last; None before the first.
    """

    def __init__(self, settings: StopSettings) -> None:
        self._settings = settings
        self._down_since: int | None = None
        self._rejects = 0
        self._armed: str | None = None  # the session that armed the link last
        self._done: str | None = None  # a session that gets no golden check (any more)
        self._judged: list[Cause] = []
        self.state = LineState.RUNNING
        self.why: LineEvent | None = None

    def on_link(
        self, fault: Cause | None, session_id: str | None, now: int, *, belt_empty: bool
    ) -> None:
        """The link as it is now; ask again at `due_ns` at the latest.

        Golden parts go onto an empty belt only, so that none is taken for another.
        """
        if fault is not None:
            self._down_since = now if self._down_since is None else self._down_since
            self._happen(LineEvent.LINK_LOST)
            limit = self._settings.after_ns
            if limit is not None and now - self._down_since >= limit:
                self._happen(LineEvent.LINK_DOWN_TOO_LONG)
            return
        self._down_since = None
        self._armed = session_id
        if self._settings.golden is not None and belt_empty and session_id != self._done:
            self._happen(LineEvent.NEW_SESSION_ARMED)

    def on_record(self, record: GateRecord) -> None:
        """A part left the gate; of golden ones the good one comes first, then the bad one."""
        if record.golden:
            self._on_golden(record.cause)
            return
        self._rejects = 0 if record.passed else self._rejects + 1
        limit = self._settings.after_rejects
        if limit is not None and self._rejects >= limit:
            self._happen(LineEvent.TOO_MANY_REJECTS)

    def on_operator(self, fault: Cause | None) -> None:
        """A person acknowledged. Without an armed link nothing follows: press again."""
        if self._settings.operator and fault is None:
            self._happen(LineEvent.OPERATOR)

    def due_ns(self) -> int | None:
        """When a link that stays down will stop the line; None if it will not."""
        limit = self._settings.after_ns
        if self.state is not LineState.RUNNING or self._down_since is None or limit is None:
            return None
        return self._down_since + limit

    def _on_golden(self, cause: Cause) -> None:
        if self.state is not LineState.CHECKING:
            return
        self._judged.append(cause)
        wanted = [Cause.PASS_VERDICT, Cause.REJECT_VERDICT]
        if self._judged != wanted[: len(self._judged)]:
            self._happen(LineEvent.GOLDEN_WRONG)
        elif self._judged == wanted:
            self._happen(LineEvent.GOLDEN_RIGHT)

    def _happen(self, event: LineEvent) -> None:
        after = TRANSITIONS.get((self.state, event))
        if after is None:
            return
        if self.state is LineState.RUNNING or event is LineEvent.GOLDEN_WRONG:
            self._done = self._armed
        if after is LineState.STOPPED:
            self.why = event
        self._judged = []
        self._rejects = 0
        self.state = after
