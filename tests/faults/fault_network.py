"""A network namespace with one cable into it, that can be cut and made to lose packets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import Self

_made = count()
ADDRESS, INSIDE = "10.213.77.1", "10.213.77.2"


class NoCableError(Exception):
    """This machine gives no network namespace; says why."""


class Cable:
    """`inside` runs a command at the far end; `address` is the near end, seen from there."""

    def __init__(self) -> None:
        # The kernel clears an old one away later. Names of links have 15 letters at most.
        name = f"mf{os.getpid()}x{next(_made)}"
        self.address = ADDRESS
        self.inside = ("ip", "netns", "exec", name)
        self._name, self._near, self._far = name, f"{name}a", f"{name}b"

    def __enter__(self) -> Self:
        if shutil.which("ip") is None:
            raise NoCableError("ip (iproute2) is not installed")
        _clear_leftovers()
        _ip("netns", "add", self._name)
        try:
            _ip("link", "add", self._near, "type", "veth", "peer", self._far, "netns", self._name)
            _ip("address", "add", f"{ADDRESS}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            _ip("-n", self._name, "address", "add", f"{INSIDE}/30", "dev", self._far)
            _ip("-n", self._name, "link", "set", self._far, "up")
            _ip("-n", self._name, "link", "set", "lo", "up")
        except NoCableError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        _ip("netns", "delete", self._name)

    def cut(self) -> None:
        _ip("link", "set", self._near, "down")

    def mend(self) -> None:
        _ip("link", "set", self._near, "up")

    def deafen(self, deaf: bool) -> None:
        """What comes from inside goes to a machine that does not exist; the rest arrives."""
        neighbour = ("neigh", "replace" if deaf else "delete", ADDRESS)
        more = ("lladdr", "02:00:00:00:00:01", "nud", "permanent") if deaf else ()
        _ip("-n", self._name, *neighbour, *more, "dev", self._far)

    def throttle(self, kbit: int | None) -> None:
        """What comes from inside waits up to 0.3 s for its turn, or is dropped."""
        verb = ("delete",) if kbit is None else ("replace",)
        shape = () if kbit is None else ("tbf", "rate", f"{kbit}kbit", "burst", "4kb")
        more = () if kbit is None else ("latency", "300ms")
        tc = ("tc", "-n", self._name, "qdisc", *verb, "dev", self._far, "root", *shape, *more)
        done = subprocess.run(tc, capture_output=True, check=False)
        if done.returncode != 0:
            raise NoCableError(f"no tbf in this kernel ({done.stderr.decode().strip()})")


def _clear_leftovers() -> None:
    """Removes what a killed run left: its cable has our address, and takes our packets."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        made_by = re.match(r"mf(\d+)x\d+\b", line)
        if made_by and not Path(f"/proc/{made_by[1]}").exists():
            _ip("netns", "delete", line.split()[0])


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, check=False)
    if done.returncode != 0:
        raise NoCableError(f"ip {' '.join(words)}: {done.stderr.decode().strip()}")
