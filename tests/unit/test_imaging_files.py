"""Reading real files of every kind: what is taken, what is refused, and within which limits."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.picture_files import encoded, picture, rgb, save

from metal_edge.errors import DataError, MissingInputError
from metal_edge.imaging import MAX_FILE_BYTES, image_info, read_image

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything, so a test of permissions steps down for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# --- what is read, and how


@pytest.mark.parametrize(
    ("suffix", "kind", "options"),
    [
        ("png", "PNG", {}),
        ("bmp", "BMP", {}),
        ("tif", "TIFF", {}),
        ("TIFF", "TIFF", {"compression": "tiff_lzw"}),
        ("webp", "WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_stored_pixels(
    tmp_path: Path, suffix: str, kind: str, options: dict[str, Any]
) -> None:
    path = save(tmp_path / f"x.{suffix}", rgb(), format=kind, **options)
    image = read_image(path)
    assert np.array_equal(image, picture())
    assert image.flags.c_contiguous and image.flags.writeable
    info = image_info(path)
    assert (info.width, info.height, info.mode) == (37, 24, "RGB")


def test_jpeg_gives_rgb_order(tmp_path: Path) -> None:
    red = PIL.Image.new("RGB", (16, 16), (250, 10, 20))
    image = read_image(save(tmp_path / "x.jpg", red, quality=95))
    assert np.abs(image.astype(int) - (250, 10, 20)).max() <= 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_conversions_with_one_meaning(tmp_path: Path, mode: str) -> None:
    source = rgb().quantize(16) if mode == "P" else rgb().convert(mode)
    image = read_image(save(tmp_path / "x.png", source))
    assert np.array_equal(image, np.asarray(source.convert("RGB")))
    if mode in ("L", "1", "LA"):
        assert (image == image[..., :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied_in_pixels_and_header(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    """The stored picture is red in its top-left corner; EXIF says where that corner belongs."""
    stored = np.full((16, 32, 3), 20, np.uint8)
    stored[:8, :8] = (250, 0, 0)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{suffix}", PIL.Image.fromarray(stored), exif=exif.tobytes())
    image = read_image(path)
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    rows, columns = image.shape[:2]
    assert (rows, columns) == ((32, 16) if orientation >= 5 else (16, 32))
    y = 2 if corner[0] == "t" else rows - 3
    x = 2 if corner[1] == "l" else columns - 3
    assert image[y, x, 0] > 180
    info = image_info(path)
    assert (info.width, info.height) == (columns, rows)


def test_an_orientation_behind_the_pixels_is_refused(tmp_path: Path) -> None:
    """The header scan cannot see it, so the set's size would be a lie."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = encoded(rgb(), "PNG")
    path = tmp_path / "x.png"
    path.write_bytes(data[:-12] + chunk + data[-12:])
    with pytest.raises(DataError, match="orientation"):
        read_image(path)


# --- what is refused


def sixteen_bit_rgb_png(path: Path) -> None:
    cv2.imwrite(str(path), np.full((8, 8, 3), 40_000, np.uint16))


REFUSED_BY_HEADER: dict[str, tuple[Any, str]] = {
    "grey16.png": (
        lambda p: save(p, PIL.Image.fromarray(np.full((8, 8), 999, np.uint16))),
        "8 bit",
    ),
    "rgb16.png": (sixteen_bit_rgb_png, "8 bit"),
    "rgb16.tif": (sixteen_bit_rgb_png, "8 bit"),
    "int32.tif": (lambda p: save(p, PIL.Image.new("I", (8, 8), 70_000)), "8 bit"),
    "float.tif": (lambda p: save(p, PIL.Image.new("F", (8, 8), 0.5)), "8 bit"),
    "cmyk.jpg": (lambda p: save(p, rgb().convert("CMYK")), "CMYK"),
    "lab.tif": (lambda p: save(p, PIL.Image.new("LAB", (8, 8))), "LAB"),
    "moving.png": (
        lambda p: save(p, rgb(), save_all=True, append_images=[rgb().rotate(180)]),
        "more than one",
    ),
    "moving.webp": (
        lambda p: save(p, rgb(), save_all=True, append_images=[rgb().rotate(180)]),
        "more than one",
    ),
    "pages.tiff": (lambda p: save(p, rgb(), save_all=True, append_images=[rgb()]), "more than one"),
    "gif.png": (lambda p: save(p, rgb().quantize(8), format="GIF"), "not a readable"),
    "text.jpg": (lambda p: p.write_text("hello"), "not a readable"),
    "empty.bmp": (lambda p: p.write_bytes(b""), "empty"),
    "folder.png": (lambda p: p.mkdir(), "directory"),
    "pipe.png": (os.mkfifo, "not a regular file"),
    "loop.png": (lambda p: p.symlink_to(p), "symbolic links"),
}


@pytest.mark.parametrize("name", REFUSED_BY_HEADER)
def test_refused_by_header_and_by_reader_alike(tmp_path: Path, name: str) -> None:
    make, reason = REFUSED_BY_HEADER[name]
    path = tmp_path / name
    make(path)
    for read in (image_info, read_image):
        with pytest.raises(DataError, match=reason) as caught:
            read(path)
        assert str(path) in caught.value.what
        assert caught.value.remedy
        assert "\n" not in str(caught.value)


def half_transparent() -> PIL.Image.Image:
    image = rgb().convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 254))
    return image


@pytest.mark.parametrize("kind", ["rgba", "palette", "grey", "la"])
def test_transparency_that_hides_something_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "rgba":
        half_transparent().save(path)
    elif kind == "la":
        half_transparent().convert("LA").save(path)
    elif kind == "palette":
        rgb().quantize(16).save(path, transparency=0)
    else:
        PIL.Image.new("L", (8, 8), 7).save(path, transparency=7)
    with pytest.raises(DataError, match="transparent"):
        read_image(path)


def test_a_transparent_colour_that_no_pixel_has_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    PIL.Image.new("L", (8, 8), 9).save(path, transparency=7)
    assert (read_image(path) == 9).all()


def test_missing_and_dangling_files(tmp_path: Path) -> None:
    dangling = tmp_path / "link.png"
    dangling.symlink_to(tmp_path / "gone.png")
    for path in (tmp_path / "none.png", dangling):
        with pytest.raises(MissingInputError, match=path.name):
            read_image(path)
        with pytest.raises(MissingInputError, match=path.name):
            image_info(path)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", rgb())
    path.chmod(0)
    with unprivileged(), pytest.raises(DataError, match="Permission") as caught:
        read_image(path)
    assert str(path) in caught.value.what


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "jpeg"}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
]


@pytest.mark.parametrize(("kind", "options"), FORMATS, ids=str)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    """The law that OpenCV breaks: a truncated file never becomes a picture."""
    data = encoded(rgb(48, 40), kind, **options)
    path = tmp_path / "x.png"
    path.write_bytes(data)
    assert read_image(path).shape == (48, 40, 3)
    if kind == "PNG":
        data = data[:-4]  # what follows is the checksum of nothing
    for length in [*range(0, len(data) - 1, max(1, len(data) // 60)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=str(path)):
            read_image(path)


def test_opencv_would_have_read_the_cut_jpeg(tmp_path: Path) -> None:
    """Why files are read through Pillow."""
    data = encoded(rgb(64, 64), "JPEG", quality=95)
    path = tmp_path / "x.jpg"
    path.write_bytes(data[: len(data) // 2])
    assert cv2.imread(str(path)) is not None
    with pytest.raises(DataError):
        read_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_tail_that_was_never_written_is_refused(tmp_path: Path, kind: str) -> None:
    """After a power cut a file has its full length, and zeros where data should be."""
    data = encoded(rgb(48, 40), kind)
    path = tmp_path / "x.png"
    for length in range(len(data) // 2, len(data) - (4 if kind == "PNG" else 1), 7):
        path.write_bytes(data[:length] + bytes(len(data) - length))
        with pytest.raises(DataError, match=str(path)):
            read_image(path)


@settings(max_examples=150)
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_changed_byte_in_a_png_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    data = bytearray(encoded(rgb(), "PNG"))
    data[position % (len(data) - 12)] ^= flip  # the closing chunk carries no picture
    path = tmp_path_factory.getbasetemp() / "changed.png"
    path.write_bytes(data)
    with pytest.raises(DataError):
        read_image(path)


@settings(max_examples=300)
@given(data=st.binary(max_size=200), start=st.sampled_from(["", *sorted({k for k, _ in FORMATS})]))
def test_garbage_gives_a_picture_or_a_data_error_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: str
) -> None:
    head = encoded(rgb(8, 8), start)[:60] if start else b""
    path = tmp_path_factory.getbasetemp() / "garbage.png"
    path.write_bytes(head + data)
    with suppress(DataError):
        assert read_image(path).dtype == np.uint8
    with suppress(DataError):
        assert image_info(path).width > 0


# --- limits


def png_claiming(width: int, height: int) -> bytes:
    """A valid PNG head that promises width x height pixels, and a little data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 9000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_with_size_limit_and_remedy(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(*size))
    for read in (image_info, read_image):
        with pytest.raises(DataError, match="limit is 64 million pixels") as caught:
            read(path)
        assert str(path) in caught.value.what
        assert caught.value.remedy
    far = size[0] * size[1] > 10**9  # there, Pillow stops before the sides can be asked for
    shown = str(size[0] * size[1]) if far else f"{size[0]}x{size[1]}"
    assert shown in caught.value.what


@pytest.mark.parametrize("kind", ["png", "webp", "bmp"])
def test_a_bomb_allocates_nothing(tmp_path: Path, kind: str) -> None:
    """A fresh process that may grow by 64 MiB only still gives the tidy error."""
    side = 16_000
    path = tmp_path / f"bomb.{kind}"
    if kind == "png":
        path.write_bytes(png_claiming(side, side))
    elif kind == "webp":
        data = bytearray(encoded(rgb(), "WEBP", lossless=True))
        data[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14)
        path.write_bytes(data)
    else:
        data = bytearray(encoded(rgb(), "BMP"))
        data[18:26] = struct.pack("<ii", side, side)
        path.write_bytes(data)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from metal_edge.errors import DataError\n"
        "from metal_edge.imaging import read_image\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + 64 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try: read_image(Path(sys.argv[1]))\n"
        "except DataError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    assert "million pixels" in run.stdout
    assert run.stderr == ""


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(rgb(), "PNG"))
    os.truncate(path, MAX_FILE_BYTES + 1)  # sparse: takes no room
    with pytest.raises(DataError, match="limit is 256 MiB"):
        read_image(path)
    with pytest.raises(DataError, match="limit is 256 MiB"):
        image_info(path)
