"""Pictures that no line should learn from, as they really occur."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

SIZE = (48, 40)  # width, height of the good pictures beside them


def _encoded(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(9).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    data = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(data, kind)
    return data.getvalue()


def corrupt_png(folder: Path) -> Path:
    data = bytearray(_encoded("PNG"))
    data[len(data) // 2] ^= 0x10
    return _write(folder / "x.png", bytes(data))


def truncated_png(folder: Path) -> Path:
    data = _encoded("PNG")
    return _write(folder / "x.png", data[: len(data) * 2 // 3])


def truncated_jpeg(folder: Path) -> Path:
    data = _encoded("JPEG")
    return _write(folder / "x.jpg", data[: len(data) * 2 // 3])


def corrupt_jpeg(folder: Path) -> Path:
    """The start marker is gone."""
    return _write(folder / "x.jpg", b"\0\0" + _encoded("JPEG")[2:])


def empty_file(folder: Path) -> Path:
    return _write(folder / "x.png", b"")


def text_file(folder: Path) -> Path:
    return _write(folder / "x.png", b"remember to photograph part 7 again\n" * 20)


def giant_picture(folder: Path) -> Path:
    """A valid header that claims 60000 x 60000 pixels: ten gigabytes from a hundred bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks)
    return _write(folder / "x.png", data)


def sixteen_bit(folder: Path) -> Path:
    pixels = np.random.default_rng(9).integers(0, 65536, (SIZE[1], SIZE[0]), dtype=np.uint16)
    assert cv2.imwrite(str(folder / "x.png"), pixels)
    return folder / "x.png"


def transparent(folder: Path) -> Path:
    pixels = np.full((SIZE[1], SIZE[0], 4), 120, np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "x.png")
    return folder / "x.png"


def other_size(folder: Path) -> Path:
    shades = PIL.Image.linear_gradient("L").resize((SIZE[0] + 1, SIZE[1]))
    shades.convert("RGB").save(folder / "x.png")
    return folder / "x.png"


def folder_named_like_a_picture(folder: Path) -> Path:
    (folder / "x.png").mkdir()
    return folder / "x.png"


def dangling_link(folder: Path) -> Path:
    (folder / "x.png").symlink_to("gone.png")
    return folder / "x.png"


BAD = (
    corrupt_png,
    truncated_png,
    corrupt_jpeg,
    truncated_jpeg,
    empty_file,
    text_file,
    giant_picture,
    sixteen_bit,
    transparent,
    other_size,
    folder_named_like_a_picture,
    dangling_link,
)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
