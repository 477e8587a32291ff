"""Reading real files of every kind, and the pure picture functions."""

from __future__ import annotations

import io
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
from hypothesis.extra import numpy as hnp

from metal_edge.domain import Image
from metal_edge.errors import DataError, MissingInputError, OutputError
from metal_edge.imaging import (
    MAX_FILE_BYTES,
    heatmap,
    image_info,
    overlay,
    prepare,
    read_image,
    read_mask,
    write_png,
)

NOBODY = 65534


def picture(height: int = 24, width: int = 37, seed: int = 0) -> Image:
    """A slope with grain: every channel and both axes differ."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(3 * np.arange(height), 2 * np.arange(width))[..., None]
    return (slope + rng.integers(0, 30, (height, width, 3)) + [0, 40, 80]).astype(np.uint8)


def encoded(image: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def save(path: Path, image: PIL.Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def rgb(height: int = 24, width: int = 37) -> PIL.Image.Image:
    return PIL.Image.fromarray(picture(height, width))


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
    "pages.tiff": (
        lambda p: save(p, rgb(), save_all=True, append_images=[rgb()]),
        "more than one",
    ),
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


# --- masks


@pytest.mark.parametrize("high", [1, 128, 255])
def test_mask_levels(tmp_path: Path, high: int) -> None:
    values = np.zeros((6, 9), np.uint8)
    values[2:4, 5:] = high
    path = save(tmp_path / "m.png", PIL.Image.fromarray(values))
    mask = read_mask(path, 6, 9)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, values > 0)


def test_mask_edges_are_cut_at_half(tmp_path: Path) -> None:
    values = np.array([[0, 127, 128, 255]], np.uint8)
    mask = read_mask(save(tmp_path / "m.png", PIL.Image.fromarray(values)), 1, 4)
    assert mask.tolist() == [[False, False, True, True]]


def test_an_empty_mask_is_empty(tmp_path: Path) -> None:
    assert not read_mask(save(tmp_path / "m.png", PIL.Image.new("L", (4, 5))), 5, 4).any()


def test_doubtful_masks_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", PIL.Image.new("L", (4, 5), 3))
    with pytest.raises(DataError, match="values up to 3"):
        read_mask(path, 5, 4)
    with pytest.raises(DataError, match=r"mask .*m\.png is 4x5, its image 5x4"):
        read_mask(path, 4, 5)


# --- prepare

sides = st.integers(1, 70)


@given(value=hnp.arrays(np.uint8, 3), source=st.tuples(sides, sides), size=st.tuples(sides, sides))
def test_a_constant_image_stays_constant(
    value: Image, source: tuple[int, int], size: tuple[int, int]
) -> None:
    image = np.broadcast_to(value, (*source, 3)).astype(np.uint8)
    out = prepare(image, *size)
    assert out.shape == (size[1], size[0], 3)
    assert (out == value).all()


@given(factor=st.tuples(st.integers(1, 5), st.integers(1, 5)), seed=st.integers(0, 1000))
def test_shrinking_by_whole_factors_is_the_mean(factor: tuple[int, int], seed: int) -> None:
    fy, fx = factor
    image = np.random.default_rng(seed).integers(0, 256, (7 * fy, 4 * fx, 3), np.uint8)
    mean = image.reshape(7, fy, 4, fx, 3).mean(axis=(1, 3))
    assert np.abs(prepare(image, 4, 7) - mean).max() <= 0.501


@given(data=st.data())
def test_crop_is_the_slice_and_never_a_view(data: st.DataObject) -> None:
    image = picture(20, 30)
    x, y = data.draw(st.integers(0, 29)), data.draw(st.integers(0, 19))
    width, height = data.draw(st.integers(1, 30 - x)), data.draw(st.integers(1, 20 - y))
    out = prepare(image, width, height, (x, y, width, height))
    assert np.array_equal(out, image[y : y + height, x : x + width])
    assert out.flags.c_contiguous
    assert not np.shares_memory(out, image)


def test_one_axis_shrinks_by_area_while_the_other_grows() -> None:
    """OpenCV alone would sample: alternating columns must average to grey, not to stripes."""
    image = np.zeros((4, 64, 3), np.uint8)
    image[:, ::2] = 200
    assert (prepare(image, 8, 16) == 100).all()


@pytest.mark.parametrize(
    "crop",
    [(-1, 0, 5, 5), (0, -1, 5, 5), (33, 0, 5, 5), (0, 20, 5, 5), (0, 0, 0, 5), (0, 0, 5, -5)],
)
def test_a_crop_outside_is_refused(crop: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError, match="37x24"):
        prepare(picture(), 8, 8, crop)


@pytest.mark.parametrize(
    "image", [picture()[..., 0], picture().astype(np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_prepare_wants_rgb_bytes(image: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        prepare(image, 8, 8)


# --- overlays


@given(
    maps=hnp.arrays(np.float32, (5, 6), elements=st.floats(0, 4, width=32)),
    other=hnp.arrays(np.float32, (5, 6), elements=st.floats(0, 4, width=32)),
    threshold=st.floats(0.1, 3),
)
def test_the_colour_of_a_value_never_depends_on_the_rest_of_the_map(
    maps: Any, other: Any, threshold: float
) -> None:
    other[2, 3] = maps[2, 3]
    a, b = heatmap(maps, threshold), heatmap(other, threshold)
    assert np.array_equal(a[2, 3], b[2, 3])


def test_brighter_means_more_anomalous_up_to_twice_the_threshold() -> None:
    values = np.array([[0, 0.5, 1, 1.5, 2, 3]], np.float32)
    total = heatmap(values, 1.0).astype(int).sum(axis=2)[0]
    assert total[0] < total[1] < total[2] < total[3] < total[4] == total[5]


def test_a_value_that_is_no_number_is_shown_as_hottest() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 9, 0]], np.float32)
    colors = heatmap(values, 1.0)[0]
    assert np.array_equal(colors[0], colors[3]) and np.array_equal(colors[1], colors[3])
    assert np.array_equal(colors[2], colors[4])


def test_overlay_leaves_a_clean_image_alone() -> None:
    image = picture(32, 48)
    assert np.array_equal(overlay(image, np.zeros((8, 12), np.float32), 0.5), image)


def test_overlay_outlines_the_crossing_and_the_mask() -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    hot = np.zeros((64, 64), np.float32)
    hot[10:20, 30:50] = 1.0
    mask = np.zeros((64, 64), np.bool_)
    mask[40:50, 5:15] = True
    before = image.copy()
    out = overlay(image, hot, 0.5, mask)
    assert out.shape == image.shape and np.array_equal(image, before)
    cyan = (out == (0, 255, 255)).all(axis=2)
    white = (out == 255).all(axis=2)
    assert cyan[10, 30:50].all() and cyan[19, 30:50].all() and not cyan[12:18, 32:48].any()
    assert white[40, 5:15].all() and not white[42:48, 7:13].any()
    below = overlay(image, hot, 1.01)
    assert not (below == (0, 255, 255)).all(axis=2).any()


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_without_a_scale_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        overlay(picture(), np.zeros((4, 4), np.float32), threshold)


# --- writing


@settings(max_examples=60)
@given(image=hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))))
def test_png_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, image: Image) -> None:
    path = tmp_path_factory.getbasetemp() / "round" / "x.png"
    write_png(path, image)
    assert np.array_equal(read_image(path), image)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    """A file limit of 1 KiB stands for a full disk, in a process of its own."""
    path = tmp_path / "x.png"
    write_png(path, picture(4, 4))
    code = (
        "import resource, signal, sys; from pathlib import Path; import numpy as np\n"
        "from metal_edge.errors import OutputError\n"
        "from metal_edge.imaging import write_png\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)\n"
        "try: write_png(Path(sys.argv[1]), noise)\n"
        "except OutputError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    assert f"cannot write {path}" in run.stdout
    assert np.array_equal(read_image(path), picture(4, 4))
    assert list(tmp_path.iterdir()) == [path]


def test_a_destination_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_png(tmp_path / "file" / "x.png", picture())
