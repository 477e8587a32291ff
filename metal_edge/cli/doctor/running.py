"""Whether a daemon serves this line already; looked up without touching what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from metal_edge.settings import LineSettings

PROC = Path("/proc")
COMMANDS = (b"metal_edge.daemon", b"run")


def running_daemon(config: Path, settings: LineSettings, proc: Path = PROC) -> str | None:
    """`process 123`, or None when none is found on this machine."""
    pid = next(_started_with(config, proc), None) or _holder(settings, proc)
    return None if pid is None else f"process {pid}"


def _started_with(config: Path, proc: Path) -> Iterator[int]:
    """Processes whose command line names the settings file."""
    wanted = config.resolve()
    for folder in proc.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            here = Path(os.readlink(folder / "cwd"))  # noqa: PTH115  (a link into another root)
        except OSError:  # it has ended, or is somebody else's
            continue
        if int(folder.name) == os.getpid() or not any(word in words for word in COMMANDS):
            continue
        given = (Path(os.fsdecode(word)) for word in words if word.endswith(b".toml"))
        if any((here / path).resolve() == wanted for path in given):
            yield int(folder.name)


def _holder(settings: LineSettings, proc: Path) -> int | None:
    """Who holds the outbox' lock; trying to take it could get in a starting daemon's way."""
    path = settings.outbox.path
    if path is None:
        return None
    try:
        inode = path.with_name(path.name + ".lock").stat().st_ino
        locks = (proc / "locks").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in locks.splitlines():
        words = line.split()  # 1: FLOCK ADVISORY WRITE 1234 fd:01:56789 0 EOF
        if "FLOCK" in words and words[-3].rpartition(":")[2] == str(inode):
            return int(words[-4])
    return None
