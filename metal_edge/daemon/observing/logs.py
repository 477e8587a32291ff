"""The daemon's log on stderr: text or JSON, a line per record, with a priority for journald."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from metal_edge.daemon.mqtt.messages import iso_utc
from metal_edge.daemon.observing.log_writer import LogWriter
from metal_edge.settings import LogSettings

log = logging.getLogger(__name__)

TEXT = "%(levelname)s %(name)s: %(message)s"
LINE_THREAD = "line "  # what a line's thread is called, before the line's name
# syslog(3) priorities, as journald takes them: sd-daemon(3).
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7
# What every record has; the rest came by `extra`.
_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_PASSWORD = re.compile(r"//[^/\s]*@")  # up to the last @: a password may hold one


def set_up_logging(settings: LogSettings, stream: TextIO, environment: Mapping[str, str]) -> None:
    """Sends the whole process' log to `stream`, replacing what was set up before."""
    handler: logging.Handler
    try:
        handler = LogWriter(stream.fileno())
    except (OSError, ValueError):  # no file behind it, so nothing that could hang
        handler = logging.StreamHandler(stream)
    prefix = goes_to_journal(stream, environment)
    handler.setFormatter((JsonFormatter if settings.format == "json" else TextFormatter)(prefix))
    logging.basicConfig(handlers=[handler], level=settings.level, force=True)
    sys.excepthook = _tell_crash


def _tell_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A crash in the log's own form, after all that was logged; Python's would come between."""
    if not issubclass(kind, Exception):  # Ctrl-C
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the process ends by a mistake in it", exc_info=(kind, error, trace))
    flush_log()


def flush_log() -> None:
    """Waits, not for long, until what was logged is out: the last words come after it."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def goes_to_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether `stream` is the very socket that systemd says it connected to the journal."""
    said = environment.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file behind it
        return False
    return said == f"{found.st_dev}:{found.st_ino}"


class TextFormatter(logging.Formatter):
    """For people. `prefix`: each line begins with its priority, `<6>`."""

    def __init__(self, prefix: bool = False) -> None:
        super().__init__(TEXT)
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        text = without_passwords(super().format(record))
        if not self._prefix:
            return text
        # journald makes an entry of each line; a traceback's would lose their priority.
        mark = f"<{priority(record.levelno)}>"
        return "\n".join(mark + line for line in text.splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object per record; fields given by `extra` stand beside the usual ones."""

    def __init__(self, prefix: bool = False) -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        fields: dict[str, Any] = {
            "time": iso_utc(round(record.created * 1e9)),
            "level": record.levelname,
            "logger": record.name,
            "message": without_passwords(record.getMessage()),
            "thread": record.threadName,
        }
        if (record.threadName or "").startswith(LINE_THREAD):
            fields["line"] = (record.threadName or "").removeprefix(LINE_THREAD)
        fields |= {k: _plain(v) for k, v in vars(record).items() if k not in _USUAL}
        if record.exc_info:
            fields["exception"] = without_passwords(self.formatException(record.exc_info))
        if record.stack_info:
            fields["stack"] = record.stack_info
        text = json.dumps(fields, separators=(",", ":"))
        return f"<{priority(record.levelno)}>{text}" if self._prefix else text


def priority(level: int) -> int:
    """Of syslog: 2 critical, 3 error, 4 warning, 6 information, 7 debug."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


def without_passwords(text: str) -> str:
    """`rtsp://user:secret@camera` without user and password: a driver may log its whole address."""
    return _PASSWORD.sub("//", text)


def _plain(value: Any) -> Any:
    """What JSON can say; NaN, which it cannot, becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_passwords(str(value))
