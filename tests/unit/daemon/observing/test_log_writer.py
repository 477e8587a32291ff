"""A log whose reader stops: nobody waits for it, and what is lost is told."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.broker import wait_until

from metal_edge.daemon.observing.log_writer import LogWriter, log_problems

PIPE = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    with ExitStack() as ends:
        ends.callback(os.close, writer)
        reading = os.fdopen(reader, "rb")
        ends.callback(reading.close)
        yield reading.fileno(), writer


def say(writer: LogWriter, text: str) -> None:
    writer.handle(logging.makeLogRecord({"name": "room", "msg": text}))


def numbers(text: str) -> list[int]:
    return [int(line.split()[0]) for line in text.splitlines()]


def read_all(reader: int, end: str) -> str:
    found = ""
    while end not in found:
        found += os.read(reader, 65536).decode()
    return found


@pytest.mark.parametrize("blocking", [True, False])
def test_who_logs_never_waits_and_what_is_missing_is_told_in_its_place(
    pipe: tuple[int, int], blocking: bool
) -> None:
    reader, descriptor = pipe
    os.set_blocking(descriptor, blocking)
    writer = LogWriter(descriptor, max_waiting=3 * PIPE)
    logging.getLogger().addHandler(writer)
    try:
        for number in range(1000):  # ten times as much as pipe and queue hold
            say(writer, f"{number:09} ".ljust(99, "x"))
        assert writer.lost > 0 and log_problems() == ("log: not taken",)
        lost = writer.lost
        drained = threading.Thread(target=lambda: texts.append(read_all(reader, "the end\n")))
        texts: list[str] = []
        drained.start()
        wait_until(lambda: writer.lost == 0, "the log to flow")
        assert log_problems() == ()
        say(writer, "1000 the end")
        drained.join(10)
    finally:
        logging.getLogger().removeHandler(writer)
        writer.close()
    expected = missing = 0
    for line in texts[0].splitlines():
        first = int(line.split()[0])
        if line.endswith("log records were dropped: the log was not taken"):
            expected, missing = expected + first, missing + first
        else:
            assert first == expected
            expected += 1
    assert expected == 1001 and missing >= lost


def test_the_end_waits_for_what_was_said_and_not_for_ever(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LogWriter(descriptor)
    for number in range(30):
        say(writer, f"{number} said")
    writer.close()
    assert numbers(os.read(reader, 65536).decode()) == [*range(30)]
    say(writer, "too late")
    assert writer.lost == 1
    hanging = LogWriter(descriptor)
    say(hanging, "x" * 3 * PIPE)
    hanging.flush()
    hanging.close()
    assert os.read(reader, PIPE)[:1] == b"x"


def test_what_cannot_be_written_is_counted_until_it_can(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        writer = LogWriter(descriptor)
        say(writer, "one")
        say(writer, "two")
        writer.flush()
        assert writer.lost == 2
        with (tmp_path / "log").open("wb") as better:
            os.dup2(better.fileno(), descriptor)
        say(writer, "three")
        writer.close()
    finally:
        os.close(descriptor)
    assert (tmp_path / "log").read_text().splitlines() == [
        "2 log records were dropped: the log was not taken",
        "three",
    ]


def test_a_mistake_in_a_log_line_is_told_and_ends_nothing(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    wrong = {"name": "room", "msg": "seq=%d", "args": ("seven",)}
    writer.handle(logging.makeLogRecord(wrong))
    writer.close()
    assert b"ERROR room: a log line failed: 'seq=%d': TypeError" in os.read(pipe[0], 65536)


CRASH = """
import logging, os, sys
from metal_edge.daemon.observing.logs import set_up_logging
from metal_edge.settings import LogSettings
set_up_logging(LogSettings(), sys.stderr, os.environ)
for number in range(2000):
    logging.getLogger("room").warning("%d said", number)
raise RuntimeError("the crash")
"""


def test_a_crash_loses_no_line_and_is_the_last() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CRASH], capture_output=True, check=False, text=True, timeout=60
    )
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert lines[:2000] == [f"WARNING room: {number} said" for number in range(2000)]
    assert lines[2000].startswith("CRITICAL ")
    assert lines[2001:] == [
        "Traceback (most recent call last):",
        '  File "<string>", line 8, in <module>',
        "RuntimeError: the crash",
    ]
