"""Results that appear whole or not at all: written beside their destination, then renamed."""

from __future__ import annotations

import os
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


def _sync(file: Path) -> None:
    """Flushes contents: a rename must not reach the disk before what it names."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path} ({error.strerror or error})",
        "free space there or choose another place",
    )
