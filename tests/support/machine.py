"""A machine with a systemd of its own: systemd-nspawn boots a root folder, and powers it off.

The root folder stays as it is (changes go to memory); network and processes are private.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, Self

from support.broker import wait_until

BOOT_S = 60
POWEROFF_S = 30
_CGROUPS = Path("/sys/fs/cgroup")
_OTHERS = ("-u", "-i", "-n", "-p", "-C")  # nsenter's names for all namespaces but the files'


class CannotBootError(Exception):
    """This computer cannot run such a machine; says why."""


class Machine:
    """One booted machine.

    Args:
        root: a distribution's root folder.
        binds: folder or file here -> where the machine sees it, read-only.
        log: gets what the machine writes to its console.
    """

    def __init__(self, root: Path, binds: dict[Path, str], log: Path) -> None:
        self._root = root
        self._binds = binds
        self._log = log
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._cgroups_before: set[Path] = set()

    def __enter__(self) -> Self:
        """Boots.

        Raises:
            CannotBootError: no rights, no systemd-nspawn, or the machine did not come up.
        """
        if os.geteuid() != 0:
            raise CannotBootError("booting a machine needs root")
        for program in ("systemd-nspawn", "nsenter", "setpriv"):
            if shutil.which(program) is None:
                raise CannotBootError(f"{program} is not installed")
        self._cgroups_before = _cgroups()
        command = [
            # Tests that are killed take their machine along: it powers off on SIGTERM.
            *("setpriv", "--pdeathsig", "TERM"),
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
            *("--private-network", "--volatile=overlay", "--console=pipe"),
            f"--directory={self._root}",
            f"--machine=metal-edge-{os.getpid()}",
            *(f"--bind-ro={here}:{there}" for here, there in self._binds.items()),
        ]
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(self._is_up, "the machine to boot", BOOT_S)
        except AssertionError as error:
            self.__exit__()
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise CannotBootError(f"systemd-nspawn does not boot here ({error}; {last})") from error
        return self

    def __exit__(self, *unused: object) -> None:
        """Powers off; whatever is left of the machine after that is an error."""
        nspawn = self._nspawn
        assert nspawn is not None
        if nspawn.poll() is None:
            if self._init:
                self.call("systemctl", "--no-block", "poweroff")
            else:
                nspawn.terminate()
            try:
                nspawn.wait(POWEROFF_S)
            except subprocess.TimeoutExpired:
                nspawn.kill()  # the machine's processes are killed with it
                nspawn.wait()
        for left in sorted(_cgroups() - self._cgroups_before, reverse=True):
            left.rmdir()
        assert str(self._root) not in Path("/proc/self/mountinfo").read_text()
        sys.stdout.write(self._log.read_text(errors="replace"))

    def _is_up(self) -> bool:
        nspawn = self._nspawn
        assert nspawn is not None
        assert nspawn.poll() is None, f"it ended with {nspawn.returncode}"
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self._init = int(children[0])
        state = self.call("systemctl", "is-system-running").stdout.strip()
        return state in {"running", "degraded"}

    def enter(self, *command: str, pid: int | None = None) -> list[str]:
        """The command line that runs `command` in there; with `pid`, sees files as it does."""
        files = [f"--mount=/proc/{pid}/ns/mnt"] if pid else ["-m"]
        return ["nsenter", f"--target={self._init}", *files, *_OTHERS, "--", *command]

    def call(self, *command: str, pid: int | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `command` in the machine; the caller looks at the return code."""
        return subprocess.run(
            self.enter(*command, pid=pid),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )

    def run(self, *command: str) -> str:
        """Standard output of a command that must succeed."""
        result = self.call(*command)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout

    def show(self, unit: str) -> dict[str, str]:
        """`systemctl show`: every property of a unit."""
        rows = self.run("systemctl", "show", unit).splitlines()
        return dict(row.split("=", 1) for row in rows if "=" in row)

    def outer_pid(self, pid: int) -> int:
        """The number that this computer has for the machine's process `pid`."""
        ours = Path(f"/proc/{self._init}/ns/pid").readlink()
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
                same = (status.parent / "ns/pid").readlink() == ours
            except OSError:  # it ended meanwhile
                continue
            numbers = next(row for row in text.splitlines() if row.startswith("NSpid:")).split()
            if same and numbers[-1] == str(pid):
                return int(status.parent.name)
        raise AssertionError(f"no process {pid} in the machine")


class Ear:
    """mosquitto_sub in the machine: remembers every message below `root`."""

    def __init__(self, machine: Machine, root: str, *login: str) -> None:
        self._heard: deque[tuple[str, Any]] = deque()
        command = (
            "mosquitto_sub",
            "-h",
            "127.0.0.1",
            "-V",
            "5",
            *login,
            "-t",
            f"{root}/#",
            "-F",
            "%t\t%p",
        )
        self._process = subprocess.Popen(
            # Without its fork, nsenter becomes the program, which then gets our SIGTERM itself.
            ["nsenter", "--no-fork", *machine.enter(*command)[1:]],
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for row in self._process.stdout:
            topic, _, payload = row.rstrip("\n").partition("\t")
            name = topic.rpartition("/")[2]
            self._heard.append((name, json.loads(payload) if payload else None))

    def all(self, name: str) -> list[Any]:
        """Every payload heard so far on `.../name`."""
        return [payload for heard, payload in list(self._heard) if heard == name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)


def _cgroups() -> set[Path]:
    """nspawn leaves `payload` and `supervisor` below its own groups."""
    tops = [_CGROUPS, *_CGROUPS.glob("*/")]
    names = [top / name for top in tops for name in ("payload", "supervisor")]
    return {folder for name in names if name.is_dir() for folder in (name, *name.rglob("*/"))}
