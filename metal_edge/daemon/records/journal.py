"""A ring in a file that outlives kill -9, filled with one write(2) per record.

What write(2) has taken belongs to the kernel: the death of the process cannot lose it, only that
of the machine can. Nothing is synced here, so a record costs microseconds and may be written
before a decision goes out. Records go from here into SQLite, which does sync.

The file is written in full when it is made, so a disk that fills up later cannot refuse a record.
A record starts at a multiple of `SLOT` and fills whole slots: the kernel then never has to read
a page from the disk before it can change it. pwrite rather than mmap, which is a little faster:
a store into a mapped page that the disk cannot read back ends the process with SIGBUS.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SLOT = 4096
SLOTS = 1024
_MAGIC = b"MEJ1"
# magic, CRC-32 of all that follows, ring, number, released up to, lengths of id and payload
_HEAD = struct.Struct("<4sI8sQQII")
_AFTER_CRC = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One entry; `seq` counts up for as long as the file exists."""

    seq: int
    event_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Found:
    """A record in the file: where, how long, of which ring, and what was released by then."""

    slot: int
    slots: int
    ring_id: str
    released: int
    record: Record


class Journal:
    """The open ring. Not thread-safe: its owner locks.

    Attributes:
        recovered: records found on opening, oldest first, without those that were known to be
            released when the youngest was written.
        ring_id: of this file; a file begun anew counts from 1 again, under another id.
        next_seq: number of the next record.
    """

    def __init__(self, descriptor: int, slots: int, ring_id: str) -> None:
        self.recovered: list[Record] = []
        self.ring_id = ring_id
        self.next_seq = 1
        self._released = 0
        self._descriptor = descriptor
        self._slots = slots
        self._head = 0
        # Number and slots of each record that must not be overwritten, oldest first.
        self._held: deque[tuple[int, int]] = deque()
        self._used = 0

    @classmethod
    def open(cls, path: Path, slots: int = SLOTS) -> Self:
        """Opens the ring, or makes one; a file of another size is begun anew.

        Raises:
            OSError: no space, no permission, or another process has it open.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size != slots * SLOT:
                _fill(descriptor, slots)
            content = os.pread(descriptor, slots * SLOT, 0)
        except OSError:
            os.close(descriptor)
            raise
        found = sorted(_scan(content, slots), key=lambda at: at.record.seq)
        # A copied or patched file could hold two rings; the one with the last word counts.
        ring_id = found[-1].ring_id if found else os.urandom(8).hex()
        journal = cls(descriptor, slots, ring_id)
        journal._adopt([at for at in found if at.ring_id == ring_id])
        return journal

    def append(self, event_id: str, payload: bytes) -> int | None:
        """Writes one record; its number, or None when there is no room.

        Raises:
            OSError: the disk refused.
        """
        name = event_id.encode()
        ring = bytes.fromhex(self.ring_id)
        head = _HEAD.pack(_MAGIC, 0, ring, self.next_seq, self._released, len(name), len(payload))
        body = head[_AFTER_CRC:] + name + payload
        record = _MAGIC + struct.pack("<I", zlib.crc32(body)) + body
        needed = -(-len(record) // SLOT)
        start, taken = self._place(needed)
        if self._used + taken > self._slots:
            return None
        _write_all(self._descriptor, record.ljust(needed * SLOT, b"\0"), start * SLOT)
        self._head = (start + needed) % self._slots
        self._used += taken
        self._held.append((self.next_seq, taken))
        self.next_seq += 1
        return self.next_seq - 1

    def release(self, up_to: int) -> None:
        """Records up to this number may be overwritten."""
        self._released = max(self._released, up_to)
        while self._held and self._held[0][0] <= up_to:
            self._used -= self._held.popleft()[1]

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _place(self, needed: int) -> tuple[int, int]:
        """Where a record starts, and how many slots that takes: none wraps around the end."""
        left = self._slots - self._head
        return (self._head, needed) if needed <= left else (0, left + needed)

    def _adopt(self, found: list[_Found]) -> None:
        """Goes on behind the youngest record; those that may still be wanted are held.

        Between the held ones, in order of age, lie only older ones, which are free.
        """
        if not found:
            return
        youngest = found[-1]
        self.next_seq = youngest.record.seq + 1
        self._released = youngest.released
        wanted = [at for at in found if at.record.seq > youngest.released]
        self.recovered = [at.record for at in wanted]
        end = youngest.slot + youngest.slots
        self._head = end % self._slots
        for at in reversed(wanted):
            start = at.slot if at.slot <= youngest.slot else at.slot - self._slots
            self._held.appendleft((at.record.seq, end - start))
            self._used += end - start
            end = start


def _fill(descriptor: int, slots: int) -> None:
    """Real blocks, not a hole: what is written later must not need space."""
    os.ftruncate(descriptor, 0)
    zeros = bytes(SLOT * 64)
    for at in range(0, slots * SLOT, len(zeros)):
        _write_all(descriptor, zeros[: slots * SLOT - at], at)
    os.fsync(descriptor)


def _write_all(descriptor: int, content: bytes, at: int) -> None:
    done = 0
    while done < len(content):  # a signal may cut a long write short
        done += os.pwrite(descriptor, content[done:], at + done)


def _scan(content: bytes, slots: int) -> Iterator[_Found]:
    """Every whole record; what was cut off or half overwritten fails its CRC."""
    for slot in range(slots):
        at = slot * SLOT
        if len(content) - at < _HEAD.size:
            return
        magic, crc, ring, seq, released, id_size, size = _HEAD.unpack_from(content, at)
        id_end = at + _HEAD.size + id_size
        end = id_end + size
        if magic != _MAGIC or end > len(content):
            continue
        if zlib.crc32(memoryview(content)[at + _AFTER_CRC : end]) != crc:
            continue
        event_id = content[at + _HEAD.size : id_end].decode(errors="replace")
        record = Record(seq, event_id, content[id_end:end])
        yield _Found(slot, -(-(end - at) // SLOT), ring.hex(), released, record)
