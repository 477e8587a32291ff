"""Output for people: a progress bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

err = Console(stderr=True, highlight=False)
Advance = Callable[[int, int, str], None]
_LOG_EVERY_S = 10.0


def say(text: str) -> None:
    """One line for the reader, on stderr so that stdout stays parseable."""
    err.print(text, markup=False, soft_wrap=True)


def print_json(data: dict[str, Any]) -> None:
    """The command's result on stdout."""
    # ASCII, since file names need not be UTF-8.
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def say_result(text: str) -> None:
    """The command's result, for a person, on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Yields `advance(done, total, note)`."""
    if not err.is_terminal:
        yield _log_lines(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(title, total=None, note="")

        def advance(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield advance


def _log_lines(title: str) -> Advance:
    last = -_LOG_EVERY_S

    def advance(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LOG_EVERY_S or done == total:
            last = now
            say(f"{title}: {100 * done / max(total, 1):3.0f} % {note}".rstrip())

    return advance


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a flag, so that the work stops at a safe point.

    A second Ctrl-C interrupts at once, as usual.
    """
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield lambda: asked
    finally:
        for given, handler in previous.items():
            signal.signal(given, handler)
