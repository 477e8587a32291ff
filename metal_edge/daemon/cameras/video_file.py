"""Whether a video file is all there, from the sizes that its container states.

FFmpeg fills up a picture whose data end half-way with the one before it, and calls it good; so
a file that was cut off must be refused as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

# The outermost boxes of ISO base media (ISO/IEC 14496-12, 4.2), of which one comes first.
_ISO_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def is_cut_off(path: Path) -> bool:
    """True when an AVI, MP4 or QuickTime file is shorter than it says, or was never finished.

    Of other containers nothing is known: False.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head[:4] == b"RIFF":
            return _end_of_riff(file, size) != size
        if head[4:8] in _ISO_FIRST:
            return _end_of_boxes(file, size) != size
    return False


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """Where the last chunk ends by its own account; files above 1 GB have several."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] not in {b"RIFF", b"JUNK", b"idx1"} or length == 0:
            return -1
        at += 8 + length + length % 2
    return at


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # a longer size follows the type
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # to the end of the file
            return size
        if length < 8:
            return -1
        at += length
    return at
