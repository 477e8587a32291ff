"""The disk of the outbox fills up, turns read-only, or its file is damaged: decisions go on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Trial
from rig import Rig
from support.broker import wait_until

# An audit in trouble must not stop the line: parts pass all the while.
AT_ONCE_S = 1.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MB of its own."""
    folder = tmp_path / "state"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """To the last byte."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


def goes_on(rig: Rig, trial: Trial, since_ns: int) -> None:
    """Parts pass in spite of the fault, and the gate never shuts for it."""
    trial.recovered(rig.recovery_s(since_ns, 20))
    rig.wait_parts(20)
    assert rig.caused("daemon_unhealthy", since_ns) == 0


@pytest.mark.fault(
    "disk full",
    "the outbox's file system filled to the last byte, for 40 parts; broker killed meanwhile",
    limit_s=AT_ONCE_S,
)
def test_disk_full(rig: Rig, trial: Trial, disk: Path) -> None:
    rig.start(outbox={"path": str(disk / "outbox.sqlite")})
    since = time.monotonic_ns()
    filler = fill(disk)
    rig.wait_problem("outbox: disk full", 30)
    goes_on(rig, trial, since)
    rig.broker.kill()
    rig.wait_causes("broker_lost", 10, since)
    rig.restart_broker()
    rig.wait_passes(5, "the broker to be back", 30)
    filler.unlink()
    rig.wait_said("outbox: works again", 60)
    rig.wait_passes(3, "parts after it", 30)
    trial.judge(rig.finish())


@pytest.mark.fault(
    "disk read-only",
    "the outbox's file system is read-only when the daemon comes back from kill -9; then not",
    limit_s=AT_ONCE_S,
)
def test_disk_read_only(rig: Rig, trial: Trial, disk: Path) -> None:
    rig.start(outbox={"path": str(disk / "outbox.sqlite")})
    rig.wait_parts(10)
    rig.kill_daemon()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    rig.start_daemon()
    rig.wait_problem("outbox: read-only", 30)
    goes_on(rig, trial, time.monotonic_ns())
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    rig.wait_said("outbox: works again", 60)
    rig.wait_passes(3, "parts after it", 30)
    trial.judge(rig.finish())


@pytest.mark.fault(
    "SQLite file damaged",
    "the outbox's file overwritten with noise while the daemon writes to it",
    limit_s=AT_ONCE_S,
)
def test_outbox_damaged(rig: Rig, trial: Trial) -> None:
    rig.start()
    since = time.monotonic_ns()
    for name in ("outbox.sqlite", "outbox.sqlite-wal", "outbox.sqlite-shm"):
        path = rig.folder / name
        if path.exists():
            size = max(path.stat().st_size, 4096)
            with path.open("r+b") as file:
                file.write(b"\xa5" * size)
    goes_on(rig, trial, since)
    wait_until(lambda: list(rig.folder.glob("outbox.sqlite?*damaged*")), "it to be put aside", 30)
    rig.wait_said("outbox: works again", 60)
    rig.wait_passes(3, "parts after it", 30)
    trial.judge(rig.finish())
