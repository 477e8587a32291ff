"""Errors meant for a person: one line that names the thing, and what to do about it.

Exit codes follow sysexits(3), so a script or a systemd unit can tell causes apart.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its parent (sysexits.h; 130 is the shell's code for Ctrl-C)."""

    OK = 0
    FAILURE = 1
    USAGE = 64
    DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    CANNOT_CREATE = 73
    CONFIG = 78
    INTERRUPTED = 130


class MetalEdgeError(Exception):
    """Base of every error that a user can act on.

    Args:
        what: names the thing that is wrong (a path, a key, a host), in one line.
        remedy: what to do about it, in one line.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = " ".join(what.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.what}: {self.remedy}" if self.remedy else self.what)


class DataError(MetalEdgeError):
    """An image, a mask or a data folder cannot be used."""

    exit_code = ExitCode.DATA


class MissingInputError(MetalEdgeError):
    """A file or folder that was named does not exist."""

    exit_code = ExitCode.NO_INPUT


class SettingsError(MetalEdgeError):
    """A line's settings, or a command's options, do not make sense."""

    exit_code = ExitCode.CONFIG


class BundleError(MetalEdgeError):
    """A bundle is incomplete, changed, or does not reproduce its golden scores."""

    exit_code = ExitCode.DATA


class UnavailableError(MetalEdgeError):
    """A broker, camera or back end is not there."""

    exit_code = ExitCode.UNAVAILABLE


class OutputError(MetalEdgeError):
    """A result cannot be written where it was asked for."""

    exit_code = ExitCode.CANNOT_CREATE
