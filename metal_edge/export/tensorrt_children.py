"""Starts the processes of `tensorrt_trial`, listens to them, and outlives whatever they do."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Any

from metal_edge.errors import (
    BundleError,
    DataError,
    MetalEdgeError,
    OutputError,
    UnavailableError,
)
from metal_edge.export.tensorrt_builder import BuildLog
from metal_edge.export.tensorrt_trial import Job

COMMAND = (sys.executable, "-m", "metal_edge.export.tensorrt_trial")
# Longest silence, seconds. A builder tells its steps, of which one may try kernels for minutes;
# golden images and timed frames take seconds, the start of TensorRT included.
SILENCE_S = {"build": 900.0, "prove": 120.0}
_POLL_S = 0.2  # how soon Ctrl-C is noticed
_EXIT_S = 30.0  # a driver may take seconds to give up a context
_LAST_WORDS = 1 << 14  # bytes of standard error that go into the log
_LONGEST_LINE = 1 << 20
_ERRORS: dict[str, type[MetalEdgeError]] = {
    kind.__name__: kind for kind in (BundleError, DataError, OutputError, UnavailableError)
}
_REMEDY = "report it with the log, or build with --attention native"


class Conversation:
    """What a process says, line by line: builder's words go to the log, the answer is kept."""

    def __init__(self, log: BuildLog) -> None:
        self._log = log
        self._answer: dict[str, Any] | None = None
        self._error: MetalEdgeError | None = None

    def hear(self, line: bytes) -> None:
        """Takes one line.

        Raises:
            UnavailableError: it is none of ours.
        """
        try:
            kind, value = json.loads(line)
            if kind == "note":
                self._log.note(*value)
            elif kind == "phase":
                self._log.phase(*value)
            elif kind == "step":
                self._log.step(*value)
            elif kind == "error":
                name, what, remedy = value
                self._error = _ERRORS.get(name, UnavailableError)(what, remedy)
            elif kind == "done":
                self._answer = dict(value)
        except (ValueError, TypeError) as error:
            raise UnavailableError(f"its process said {line[:80]!r}", _REMEDY) from error

    def answer(self) -> dict[str, Any] | None:
        """What was found; None if the process never came that far.

        Raises:
            MetalEdgeError: what the process gave as its error.
        """
        if self._error is not None:
            raise self._error
        return self._answer


def run_job(
    job: Job,
    log: BuildLog,
    *,
    command: Sequence[str] = COMMAND,
    silence_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Starts a process for `job` and waits for its answer.

    Args:
        log: receives what the process says, its last words on standard error included; its wish
            to stop ends the process.
        command: starts the process.
        silence_s: the longest time without a word; None takes SILENCE_S.
        clock: seconds, monotonic.

    Raises:
        MetalEdgeError: as the process worded it.
        UnavailableError: the process crashed, hung, or cannot be started.
        KeyboardInterrupt: the log's `stop` said so; the process has ended.
    """
    limit = SILENCE_S[job.step] if silence_s is None else silence_s
    talk = Conversation(log)
    with TemporaryFile() as words:
        child = _start(command, words)
        try:
            _tell(child, job)
            _listen(child, talk, log, limit, clock)
            log.finish()
            code = _wait(child)
        finally:
            _kill(child)
            said = _last_words(words)
            for line in said:
                log.note("STDERR", line)
    answer = talk.answer()
    if code == 0 and answer is not None:
        return answer
    last = f" ({said[-1][:200]})" if said else ""
    raise UnavailableError(f"its process {_ending(code)}{last}", _REMEDY)


def _start(command: Sequence[str], words: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        # A session of its own: Ctrl-C is for the one who waits, and ends the process in order.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            start_new_session=True,
        )
    except OSError as error:
        raise UnavailableError(f"cannot start {command[0]} ({error.strerror})", _REMEDY) from error


def _tell(child: subprocess.Popen[bytes], job: Job) -> None:
    assert child.stdin is not None  # noqa: S101 - a pipe was asked for
    with suppress(BrokenPipeError):  # it has died already, which its exit code will say
        child.stdin.write(job.model_dump_json().encode() + b"\n")
    with suppress(BrokenPipeError):
        child.stdin.close()


def _listen(
    child: subprocess.Popen[bytes],
    talk: Conversation,
    log: BuildLog,
    limit: float,
    clock: Callable[[], float],
) -> None:
    """Until the process closes its output, or somebody wants it to stop."""
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    pending, heard = b"", clock()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not log.stopped:
            if not selector.select(_POLL_S):
                if clock() - heard > limit:
                    raise UnavailableError(f"its process hung: no word for {limit:g} s", _REMEDY)
                continue
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                return
            heard = clock()
            *lines, pending = (pending + chunk).split(b"\n")
            if len(pending) > _LONGEST_LINE:
                raise UnavailableError("its process says a line without an end", _REMEDY)
            for line in lines:
                talk.hear(line)


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait(_EXIT_S)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"its process did not end in {_EXIT_S:g} s", _REMEDY) from error


def _kill(child: subprocess.Popen[bytes]) -> None:
    """It holds nothing that it would have to put in order: its files are renamed when whole."""
    if child.stdout is not None:
        child.stdout.close()
    child.kill()
    try:
        child.wait(_EXIT_S)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"process {child.pid} does not die: the GPU's driver holds it", "restart the machine"
        ) from error


def _last_words(words: IO[bytes]) -> list[str]:
    words.seek(max(0, words.seek(0, os.SEEK_END) - _LAST_WORDS))
    return [line for line in words.read().decode("utf-8", "replace").splitlines() if line.strip()]


def _ending(code: int) -> str:
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return "ended without an answer" if code == 0 else f"ended with exit code {code}"
