"""The service manager's end of sd_notify(3): a real socket that remembers what it heard."""

from __future__ import annotations

import socket

from metal_edge.daemon.sdnotify import Notifier


class Manager:
    """The receiving end of NOTIFY_SOCKET.

    Args:
        address: a path, or @ and an abstract name.
        watchdog_usec: what `notifier` believes the manager wants.
    """

    def __init__(self, address: str, watchdog_usec: int = 2_000_000) -> None:
        self.address = address
        self.notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(watchdog_usec)})
        self._seen: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every assignment so far, in order."""
        while True:
            try:
                self._seen.extend(self._socket.recv(4096).decode().splitlines())
            except BlockingIOError:
                return list(self._seen)

    def close(self) -> None:
        self._socket.close()
