"""An outbox whose process is killed a hundred times over one file, and one whose disk hangs."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.broker import wait_until

from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.records.outbox_sqlite import SqliteOutbox
from metal_edge.daemon.records.storage import Limits

WRITER = Path(__file__).parents[1] / "support" / "outbox_writer.py"
SHARED = Path("/dev/shm")  # noqa: S108  (what a runtime directory is: memory)


def one_life(path: Path, ring: Path | None, life: int, seconds: float) -> tuple[set[str], set[str]]:
    """Starts a writer and kills it; what it had published, and what it had delivered."""
    process = subprocess.Popen(
        [sys.executable, str(WRITER), str(path), str(ring or ""), str(life)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    said = [process.stdout.readline()]  # it works, so the kill comes in the middle
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        said.append(process.stdout.readline())
    process.kill()
    said += process.stdout.read().split(b"\n")
    process.wait(10)
    words = [line.decode().split() for line in said if line.strip()]
    assert [word for word in words if word[0] == "!"] == []
    return ({w[1] for w in words if w[0] == "p"}, {w[1] for w in words if w[0] == "d"})


@pytest.mark.parametrize("place", ["beside", "in memory"])
def test_a_hundred_kills_lose_nothing_that_was_published(tmp_path: Path, place: str) -> None:
    if place == "in memory" and not os.access(SHARED, os.W_OK):
        pytest.skip(f"{SHARED} cannot be written")
    kills = 10 if os.environ.get("FAST") else 100
    path = tmp_path / "outbox.sqlite"
    ring = SHARED / f"{tmp_path.name}-{os.getpid()}.ring" if place == "in memory" else None
    published: set[str] = set()
    delivered: set[str] = set()
    dice = random.Random(1)
    try:
        for life in range(kills):
            new, done = one_life(path, ring, life, dice.uniform(0.0, 0.12))
            published |= new
            delivered |= done
        arrived = drained(path, ring)
    finally:
        if ring is not None:
            ring.unlink(missing_ok=True)
    assert len(published) > 10 * kills
    assert published - delivered - set(arrived) == set()
    repeated = len(set(arrived) & delivered)
    assert repeated <= 5 * kills, "what was delivered comes again only around a kill"
    assert list(tmp_path.glob("*damaged*")) == []
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def drained(path: Path, ring: Path | None) -> list[str]:
    """Everything that one more life finds, each with the content it was given."""
    outbox = SqliteOutbox(path, Limits(10**15, 10**9), 100_000, SystemClock(), ring)
    arrived: list[str] = []
    outbox.turn()
    while outbox.stats().depth:
        outbox.turn()
        for event in outbox.next_batch(500):
            name = event.payload.rstrip(b".").decode()
            assert name == event.event_id
            arrived.append(name)
            outbox.delivered([name])
    outbox.start()
    outbox.close(10)
    return arrived


@pytest.fixture
def freezing_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 in a file; `fsfreeze` makes every write to it hang."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(b"")
    os.truncate(image, 64_000_000)
    folder.mkdir()
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, folder]):
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk to freeze here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["fsfreeze", "-u", folder], check=False, capture_output=True)
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.timeout(60)
def test_a_disk_that_hangs_holds_up_neither_decisions_nor_events(freezing_disk: Path) -> None:
    if not os.access(SHARED, os.W_OK):
        pytest.skip(f"{SHARED} cannot be written")
    ring = SHARED / f"hangs-{os.getpid()}.ring"
    path = freezing_disk / "outbox.sqlite"
    outbox = SqliteOutbox(path, Limits(10**15, 10**9), 1000, SystemClock(), ring)
    outbox.start()
    try:
        outbox.put("before", b"x")
        wait_until(lambda: path.with_name("outbox.sqlite-wal").stat().st_size > 20_000, "a commit")
        subprocess.run(["fsfreeze", "-f", freezing_disk], check=True)
        for number in range(50):  # would hang here if it waited for the disk
            outbox.begin(f"e{number}", b"x")
            outbox.put(f"e{number}", b"x")
        wait_until(lambda: outbox.stats().problem == "the disk does not answer", "the alarm")
        names = [event.event_id for event in outbox.next_batch(100)]
        assert sorted(names) == sorted(["before", *(f"e{number}" for number in range(50))])
        outbox.delivered(names)
        subprocess.run(["fsfreeze", "-u", freezing_disk], check=True)
        wait_until(lambda: outbox.stats().problem is None, "the disk to work again")
        wait_until(lambda: outbox.stats().depth == 0, "everything to be settled")
    finally:
        subprocess.run(["fsfreeze", "-u", freezing_disk], check=False, capture_output=True)
        outbox.close(10)
        ring.unlink(missing_ok=True)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (0,)
    database.close()
