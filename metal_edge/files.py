"""Results that appear whole or not at all: written beside their destination, then renamed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from metal_edge.errors import OutputError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a sibling to write; on leaving without an error it is synced and becomes `path`.

    Missing parent folders are made. On any error, Ctrl-C included, the sibling is removed and
    an existing `path` stays.

    Raises:
        OutputError: the place cannot be written.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staging
            _sync(staging)
            staging.replace(path)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a small file atomically; see `atomic_file`."""
    with atomic_file(path) as staging:
        staging.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically; see `atomic_file`."""
    write_bytes(path, text.encode("utf-8"))


def write_folder(destination: Path, fill: Callable[[Path], None]) -> None:
    """Creates directory `destination` by filling a sibling and renaming it into place.

    On any failure, Ctrl-C included, the sibling is removed and an existing destination stays.

    Raises:
        OutputError: the place cannot be written.
    """
    staging = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    old = destination.with_name(f".{destination.name}.{os.getpid()}.old")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        fill(staging)
        for file in staging.rglob("*"):
            if file.is_file():
                _sync(file)
        if destination.exists():
            destination.rename(old)
        staging.rename(destination)
    except OSError as error:
        raise _cannot_write(destination, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if old.exists():
            if destination.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(destination)


def remove_leftovers(destination: Path) -> None:
    """Cleans up beside `destination` what `write_folder` left when its process was killed.

    An older result that was moved aside, and not yet replaced, goes back to its place. What
    belongs to a process that lives is left alone, even if that number now means another one.
    """
    mark = re.compile(re.escape(f".{destination.name}.") + r"(\d+)\.(partial|old)")
    if not destination.parent.is_dir():
        return
    for path in sorted(destination.parent.iterdir()):
        found = mark.fullmatch(path.name)
        if found is None or not path.is_dir() or path.is_symlink() or _lives(int(found[1])):
            continue
        if found[2] == "old" and not destination.exists():
            path.rename(destination)
        else:
            shutil.rmtree(path)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # asks only
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync(file: Path) -> None:
    """Flushes contents: a rename must not reach the disk before what it names."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path} ({error.strerror or error})",
        "free space there or choose another place",
    )
