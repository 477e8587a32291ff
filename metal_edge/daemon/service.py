"""The daemon's life as a process: settings, signals, and the box of lines in between."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from metal_edge.daemon.arming import Tools
from metal_edge.daemon.box import Box, ReloadFlag
from metal_edge.daemon.clock import SystemClock
from metal_edge.daemon.line.line import StopFlag
from metal_edge.daemon.observing.logs import flush_log, set_up_logging
from metal_edge.daemon.sdnotify import Notifier
from metal_edge.errors import SettingsError
from metal_edge.runtime.shared import Engines
from metal_edge.settings import LineSettings, LogSettings, load_settings

log = logging.getLogger(__name__)

LAST_WAIT_S = 0.1  # for a thread that has only to finish its sentence

# Python's own 5 ms, for which a busy thread may keep the interpreter, would be most of a verdict's
# latency when all cores are busy.
SWITCH_S = 0.0005


def run_daemon(configs: Sequence[Path], *, keep_trying: bool = False) -> int:
    """Runs one line per settings file until SIGTERM, SIGINT, or the end of all their pictures.

    Args:
        configs: TOML files; each line needs a station and a name (the file's) of its own.
        keep_trying: a line that cannot be armed, or that fails, is tried again, 1 to 30 s later.
            Several lines always are: none may stop the others.

    Returns:
        The process' exit code.

    Raises:
        MetalEdgeError: a settings file is wrong, or the only line could not be armed.
    """
    set_up_logging(LogSettings(), sys.stderr, os.environ)
    # The watchdog's SIGABRT then says where each thread was.
    faulthandler.enable()
    sys.setswitchinterval(SWITCH_S)
    lines = _lines(configs)
    _log_as_asked(lines)
    stop, reload, notifier = StopFlag(), ReloadFlag(), Notifier(os.environ)
    tools = Tools(
        clock=SystemClock(),
        stop=stop,
        engines=Engines(),
        notifier=notifier,
        phase=lambda what: None,
    )
    before = set(threading.enumerate())
    try:
        with _signals(stop, reload), closing(tools.endpoints):
            box = Box(lines, tools, notifier, reload, patient=keep_trying or len(configs) > 1)
            code = box.run()
    finally:
        flush_log()
    _leave_behind([t for t in threading.enumerate() if t not in before], code)
    return code


def _leave_behind(threads: Sequence[threading.Thread], code: int) -> None:
    """Ends the process at once if threads are still inside a camera's or a back end's library.

    Python's own way out would kill them there, and C++ answers that with abort(3). All that
    matters is closed by now.
    """
    for thread in threads:
        thread.join(LAST_WAIT_S)
    left = [thread.name for thread in threads if thread.is_alive()]
    if left:
        log.info("leaving without waiting for %s", ", ".join(left))
        logging.shutdown()
        os._exit(code)


def _lines(configs: Sequence[Path]) -> dict[str, Callable[[], LineSettings]]:
    """By name, what reads a line's settings; each is read once here, to find mistakes early."""
    roots: dict[str, Path] = {}
    lines: dict[str, Callable[[], LineSettings]] = {}
    for path in configs:
        root = load_settings(path).station.topic_root
        if root in roots:
            raise SettingsError(
                f"{path} and {roots[root]} are the same station, {root}",
                "give each line a [station] of its own",
            )
        if path.stem in lines:
            raise SettingsError(
                f"two settings files are called {path.name}", "name each after its line"
            )
        roots[root], lines[path.stem] = path, partial(load_settings, path)
    return lines


def _log_as_asked(lines: Mapping[str, Callable[[], LineSettings]]) -> None:
    """One process has one log: the first line's settings count, and another wish is told."""
    wishes = {name: read().log for name, read in lines.items()}
    first, *others = wishes
    set_up_logging(wishes[first], sys.stderr, os.environ)
    for name in others:
        if wishes[name] != wishes[first]:
            log.warning(
                "the log is as line %s has it; [log] of line %s does not count", first, name
            )


@contextmanager
def _signals(stop: StopFlag, reload: ReloadFlag) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP only set flags; restored on the way out."""
    wanted = {
        signal.SIGTERM: stop.request,
        signal.SIGINT: stop.request,
        signal.SIGHUP: reload.request,
    }
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
