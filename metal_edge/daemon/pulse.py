"""What the service manager hears of one line or of several that share a process."""

from __future__ import annotations

import threading

from metal_edge.daemon.sdnotify import Notifier


class Pulse:
    """Feeds the watchdog when every member has given a sign of life since the last time.

    So it is fed by whichever line came last, and one that hangs starves it for all.

    Args:
        notifier: to the service manager.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._lock = threading.Lock()
        self._signed: dict[str, bool] = {}
        self._texts: dict[str, str] = {}

    def join(self, member: str) -> LineSigns:
        """A new member, whose signs count from now on."""
        with self._lock:
            self._signed[member] = False
        return LineSigns(self, member)

    def sign(self, member: str) -> None:
        """`member` makes progress."""
        with self._lock:
            self._signed[member] = True
            if not all(self._signed.values()):
                return
            self._signed = dict.fromkeys(self._signed, False)
        self._notifier.watchdog()

    def leave(self, member: str) -> None:
        """`member` has ended for good; the others need not wait for it."""
        with self._lock:
            self._signed.pop(member, None)
            self._texts.pop(member, None)

    def say(self, member: str, text: str) -> None:
        """`member` is doing so; the status line names all members, or speaks for the only one."""
        with self._lock:
            if self._texts.get(member) == text:
                return
            self._texts[member] = text
            status = self._status()
        self._notifier.status(status)

    def status(self) -> str:
        """One line about all members."""
        with self._lock:
            return self._status()

    def _status(self) -> str:
        if len(self._texts) == 1:
            return next(iter(self._texts.values()))
        return "; ".join(f"{member}: {text}" for member, text in sorted(self._texts.items()))


class LineSigns(Notifier):
    """The notifier of one line: its signs are one part of the whole pulse."""

    def __init__(self, pulse: Pulse, member: str) -> None:
        super().__init__({})
        self._pulse = pulse
        self._member = member

    def watchdog(self) -> None:
        """Sign of life; only from the loop whose life it proves."""
        self._pulse.sign(self._member)

    def status(self, text: str) -> None:
        """How this line is doing."""
        self._pulse.say(self._member, text)
