"""Where a result may go: asked before the work, so that nobody waits for a refusal."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metal_edge.bundle import GOLDEN, MANIFEST, MODEL, SEAL, THRESHOLDS
from metal_edge.errors import OutputError, SettingsError

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_BUNDLE_ENTRIES = frozenset({MANIFEST, SEAL, MODEL, THRESHOLDS, GOLDEN.partition("/")[0]})


def check_writable(path: Path) -> None:
    """Looks whether `path`, or the folders that lead to it, can be made.

    Raises:
        OutputError: a file is in the way, or the permissions forbid it.
    """
    existing = path.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if existing != path.absolute() and not existing.is_dir():
        raise OutputError(
            f"cannot write {path} ({existing} is not a folder)", "choose another place with -o"
        )
    if not os.access(existing, os.W_OK):
        raise OutputError(
            f"cannot write {path} (no permission in {existing})", "choose another place with -o"
        )


def check_folder(path: Path) -> None:
    """`check_writable` for a folder of results.

    Raises:
        OutputError: see `check_writable`; also when `path` is a file.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise OutputError(f"{path} is not a folder", "choose another place with -o")
    check_writable(path)


def check_onnx_file(path: Path) -> None:
    """`check_writable` for an ONNX file; another suffix is more likely a slip than a wish.

    Raises:
        SettingsError: not named `*.onnx`.
        OutputError: see `check_writable`.
    """
    if path.suffix.lower() != ".onnx":
        raise SettingsError(f"-o {path} is not named like an ONNX file", f"e.g. -o {path}.onnx")
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "give the name of a file to write")
    check_writable(path)


def bundle_folder(path: Path) -> Path:
    """The folder that a new bundle may replace: none, an empty one, or an older bundle.

    Links are followed, so that a link to the current bundle stays one.

    Raises:
        OutputError: see `check_folder`; or anything else lies there, which must not be lost.
    """
    folder = path.resolve()
    check_folder(folder)
    if folder.is_dir():
        names = {entry.name for entry in folder.iterdir()}
        strange = sorted(names - _BUNDLE_ENTRIES)
        if names and (strange or MANIFEST not in names):
            raise OutputError(
                f"{path} exists and is not a bundle (it holds {(strange or sorted(names))[0]})",
                "choose another folder with -o",
            )
    return folder


@contextmanager
def working_files(folder: Path) -> Iterator[None]:
    """Says where space is needed: a full disk's own error names no file.

    Args:
        folder: of the working files; libraries have theirs in the system's temporary folder.

    Raises:
        OutputError: there is no space for them.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise OutputError(
            f"cannot write working files ({error.strerror})",
            f"free space in {folder} and in {tempfile.gettempdir()}",
        ) from error
