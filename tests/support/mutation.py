"""A source with one deliberate mistake."""

from __future__ import annotations

import shutil
from pathlib import Path


def mutate(source: Path, old: str, new: str, target: Path) -> None:
    """Writes `source` to `target` with `old` replaced by `new`.

    Raises:
        ValueError: `old` does not occur exactly once: the table of mutations is out of date.
    """
    text = source.read_text()
    found = text.count(old)
    if found != 1:
        raise ValueError(
            f"{source} holds {old!r} {found} times, not once: bring the table up to date"
        )
    target.write_text(text.replace(old, new))


def mutated_tree(root: Path, file: str, old: str, new: str, target: Path) -> Path:
    """A copy of the folder `root` below `target` in which one file has the mistake.

    Args:
        root: a folder of sources.
        file: relative to it.
        old: what is replaced; occurs once.
        new: by what.
        target: an empty folder.
    """
    copy = target / root.name
    shutil.copytree(root, copy)
    mutate(root / file, old, new, copy / file)
    return copy
