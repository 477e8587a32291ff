"""A log that holds nobody up: one thread writes, a bounded queue waits, what overflows is counted.

A write to a pipe or a journal that nobody reads blocks for ever, and a deciding thread that logs
would stand still with it.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque
from dataclasses import dataclass

MAX_WAITING = 1_000_000  # characters
FLUSH_S = 1.0  # at the end of the process


@dataclass(frozen=True, slots=True)
class _Item:
    """What is written at once; `records`: how many are gone if it cannot be."""

    text: str
    records: int = 1

    @property
    def size(self) -> int:
        """Characters, with the end of the line."""
        return len(self.text) + 1


class LogWriter(logging.Handler):
    """Writes to a file descriptor, from a thread of its own.

    Not through a Python stream: a thread that hangs in one keeps its lock, and so keeps the
    interpreter from ending.

    Args:
        descriptor: stays open; belongs to whoever opened it.
        max_waiting: characters that wait at most.
    """

    def __init__(self, descriptor: int, max_waiting: int = MAX_WAITING) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._items: deque[_Item] = deque()
        self._waiting = 0  # characters, with those that are being written
        self._lost = 0
        self._closed = False
        self._gave_up = False
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Records that were dropped, and of which the log does not tell yet."""
        return self._lost

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`; never blocks."""
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001  (told in its place; `handleError` may block)
            text = f"ERROR {record.name}: a log line failed: {record.msg!r}: {error!r}"
        with self._changed:
            if self._closed or self._waiting + len(text) >= self._max_waiting:
                self._lost += 1
                return
            self._tell_lost()
            self._append(_Item(text))

    def flush(self) -> None:
        """Waits until all is written, FLUSH_S at most."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._waiting == 0, FLUSH_S)
            self._gave_up = not done

    def close(self) -> None:
        """Writes what waits, within FLUSH_S, and ends the thread; one that hangs is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(0 if self._gave_up else FLUSH_S)
        super().close()

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            text = f"{lost} log records were dropped: the log was not taken"
            values = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
            notice = logging.makeLogRecord({**values, "msg": text})
            self._append(_Item(self.format(notice), lost))

    def _append(self, item: _Item) -> None:
        self._items.append(item)
        self._waiting += item.size
        self._changed.notify_all()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return
                item = self._items.popleft()
            written = self._write(item.text)
            with self._changed:
                self._waiting -= item.size
                if not written:
                    self._lost += item.records
                elif not self._items:
                    self._tell_lost()
                self._changed.notify_all()

    def _write(self, text: str) -> bool:
        left = memoryview(f"{text}\n".encode(errors="backslashreplace"))
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError:  # its reader is gone, the disk is full: counted, there is no other log
                return False
        return True


def log_problems() -> tuple[str, ...]:
    """For `problems`: whether the process' log loses records."""
    writers = [h for h in logging.getLogger().handlers if isinstance(h, LogWriter)]
    return ("log: not taken",) if any(writer.lost for writer in writers) else ()
