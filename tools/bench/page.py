"""The generated parts of docs/performance.md, each between two comments."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from metal_edge.errors import DataError, MissingInputError
from metal_edge.files import write_text

PAGE = "performance.md"


def replace_part(text: str, name: str, content: str) -> str:
    """Puts `content` between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        DataError: the text does not have each of them once, in this order.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed or begin in rest or end in tail:
        raise DataError(f"no place for {name}", f"put {begin} and {end} once into the page")
    return f"{head}{begin}\n{content.strip()}\n{end}{tail}"


def write_part(docs: Path, name: str, content: str) -> Path:
    """Rewrites one generated part of the page; returns the page's path.

    Raises:
        MissingInputError, DataError: no page there, or no place in it.
        OutputError: it cannot be written.
    """
    path = docs / PAGE
    if not path.is_file():
        raise MissingInputError(f"{path} does not exist", "restore it from git")
    write_text(path, replace_part(path.read_text(encoding="utf-8"), name, content))
    return path


def circumstances(machine: str, when: datetime, command: str) -> str:
    """Machine class, date and command: without them a figure means nothing."""
    return f"{machine}; {when.date().isoformat()}; `{command}`."
