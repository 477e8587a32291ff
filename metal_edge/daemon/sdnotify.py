"""The service manager's notification protocol, sd_notify(3), over a datagram socket."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Tells systemd how the service is doing; does nothing where nobody listens.

    Args:
        environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read from here.
        pid: of this process; a watchdog meant for another one is not ours to feed.
    """

    def __init__(self, environment: Mapping[str, str], pid: int | None = None) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL byte of Linux's abstract socket names.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = _watchdog_usec(environment, os.getpid() if pid is None else pid)
        self._warned = False

    @property
    def watchdog_period_s(self) -> float | None:
        """How often at least WATCHDOG=1 is wanted; None without a watchdog."""
        return None if self._watchdog is None else self._watchdog / 1e6

    def ready(self, status: str) -> None:
        """The line is armed."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        """Sign of life; call it only from the loop whose life it proves."""
        if self._watchdog is not None:
            self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Starting or stopping may take so much longer from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            # Inspection matters more than its supervisor; the watchdog acts if this lasts.
            if not self._warned:
                log.warning("cannot reach the service manager at NOTIFY_SOCKET (%s)", error)
            self._warned = True


def _watchdog_usec(environment: Mapping[str, str], pid: int) -> int | None:
    wanted = environment.get("WATCHDOG_USEC", "")
    if not wanted.isdigit() or int(wanted) == 0:
        return None
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(wanted)


def _one_line(text: str) -> str:
    return " ".join(text.split())
