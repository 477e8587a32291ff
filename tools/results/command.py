"""A function as a command: one line per error, exit codes of sysexits(3), 130 for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer

from metal_edge.errors import ExitCode, MetalEdgeError

# Typer exports this class of its command-line errors, but not their base.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def run_command(
    function: Callable[..., None], name: str, text: str, arguments: Sequence[str] | None = None
) -> int:
    """Runs `function` with the options that its signature declares.

    Args:
        name: how the command is called, for messages.
        text: what --help shows.
        arguments: in place of the process's own.

    Returns:
        The exit code.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=text)(function)
    try:
        code = app(arguments, standalone_mode=False, prog_name=name)
    except MetalEdgeError as error:
        return _failed(name, str(error), error.exit_code)
    except _UsageError as error:
        message = getattr(error, "format_message", error.__str__)()
        return _failed(name, f"{message.rstrip('.')}: see `{name} --help`", ExitCode.USAGE)
    if code == ExitCode.INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
        return _failed(name, "stopped; the same command goes on from here", ExitCode.INTERRUPTED)
    return int(code) if isinstance(code, int) else int(ExitCode.OK)


def _failed(name: str, words: str, code: ExitCode) -> int:
    print(f"{name}: {words}", file=sys.stderr)
    return int(code)
