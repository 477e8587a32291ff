"""Copies of kernel sources with one fault."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from tools.kernels import build


class Fault(NamedTuple):
    """One text in one of a folder's .cuh files is replaced.

    Attributes:
        after: the text that comes before it; "" is the beginning.
        old: what is replaced, the `count`-th that follows.
        new: by what.
    """

    after: str
    old: str
    new: str
    count: int = 1


def mutant(into: Path, folder: Path, fault: Fault) -> tuple[Path, ...]:
    """Copies a folder of kernels/ into an empty one, with a fault; returns its .cu and .cpp files.

    Raises:
        ValueError: the text to replace is not there, or in several files.
    """
    for beside in build.KERNELS.iterdir():
        if beside.is_dir() and beside != folder:
            (into / beside.name).symlink_to(beside)
    copy = into / folder.name
    shutil.copytree(folder, copy)
    changed = 0
    for path in sorted(copy.glob("*.cuh")):
        text = path.read_text()
        place = text.find(fault.after)
        for _ in range(fault.count if place >= 0 else 0):
            place = text.find(fault.old, place + 1)
            if place < 0:
                break
        if place >= 0:
            path.write_text(text[:place] + fault.new + text[place + len(fault.old) :])
            changed += 1
    if changed != 1:
        raise ValueError(f"{fault} fits {changed} files")
    return tuple(sorted([*copy.glob("*.cu"), *copy.glob("*.cpp")]))
