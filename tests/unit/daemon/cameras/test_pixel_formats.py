"""Formats against encoders written value by value from the naming convention, in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metal_edge.daemon.cameras.pixel_formats import (
    FORMATS,
    Packing,
    PixelDataError,
    PixelFormat,
    data_size,
    to_rgb,
)

sizes = st.tuples(st.integers(1, 6).map(lambda n: 2 * n), st.integers(1, 5).map(lambda n: 2 * n))


def pack(values: list[int], item: PixelFormat) -> NDArray[np.uint8]:
    """Bytes of raw sensor values, in the order in which they are read out."""
    if item.packing is Packing.WHOLE:
        size = 1 if item.bits <= 8 else 2
        data = b"".join(value.to_bytes(size, "little") for value in values)
    elif item.packing is Packing.LSB:
        stream = sum(value << (index * item.bits) for index, value in enumerate(values))
        data = stream.to_bytes(-(-len(values) * item.bits // 8), "little")
    else:
        data, low = b"", item.bits - 8
        for first, second in zip(values[::2], [*values[1::2], 0], strict=False):
            low_bits = (first & (1 << low) - 1) | (second & (1 << low) - 1) << 4
            data += bytes([first >> low, low_bits, second >> low])
        data = data[: -(-len(values) * 12 // 8)]
    return np.frombuffer(data, np.uint8)


MONO = [item for item in FORMATS.values() if item.layout == "mono"]


@pytest.mark.parametrize("item", MONO, ids=lambda item: item.name)
@given(data=st.data(), width=st.integers(1, 13), height=st.integers(1, 4))
@settings(max_examples=40)
def test_grey_of_any_depth_keeps_its_eight_highest_bits(
    item: PixelFormat, data: st.DataObject, width: int, height: int
) -> None:
    top = (1 << item.bits) - 1
    count = width * height
    values = data.draw(st.lists(st.integers(0, top), min_size=count, max_size=count))
    packed = pack(values, item)
    assert packed.size == data_size(width, height, item)
    rgb = to_rgb(packed, width, height, item)
    expected = np.array([value >> (item.bits - 8) for value in values]).reshape(height, width)
    assert rgb.dtype == np.uint8 and rgb.shape == (height, width, 3)
    assert all(np.array_equal(rgb[..., channel], expected) for channel in range(3))


BAYER = [item for item in FORMATS.values() if item.layout.startswith("bayer")]


@pytest.mark.parametrize("item", BAYER, ids=lambda item: item.name)
@given(size=sizes, color=st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=25)
def test_a_bayer_mosaic_of_one_colour_is_that_colour(
    item: PixelFormat, size: tuple[int, int], color: tuple[int, int, int]
) -> None:
    """PFNC: the name gives the first two pixels of the first row; the second row has the others."""
    width, height = size
    first = item.layout.removeprefix("bayer_")
    other = {"rg": "gb", "gr": "bg", "gb": "rg", "bg": "gr"}[first]
    values = []
    for row in range(height):
        for column in range(width):
            level = color["rgb".index((first, other)[row % 2][column % 2])]
            values.append(level << (item.bits - 8))
    rgb = to_rgb(pack(values, item), width, height, item)
    # OpenCV copies the border from inside, which 2 rows or columns do not have.
    if width > 2 and height > 2:
        assert np.array_equal(rgb, np.broadcast_to(np.array(color, np.uint8), rgb.shape))


def yuv(color: tuple[int, ...], full_range: bool) -> tuple[int, int, int]:
    """ITU-R BT.601 (JFIF when full), rounded."""
    red, green, blue = color
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - luma) / 1.772, (red - luma) / 1.402
    if full_range:
        parts = (luma, cb + 128, cr + 128)
    else:
        parts = (16 + luma * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255)
    y, u, v = (max(0, min(255, round(part))) for part in parts)
    return y, u, v


@pytest.mark.parametrize("name", ["yuv422", "yuyv"])
@pytest.mark.parametrize("full_range", [True, False])
@given(size=sizes, data=st.data())
@settings(max_examples=40)
def test_yuv_comes_back_as_the_scene_it_was_made_of(
    name: str, full_range: bool, size: tuple[int, int], data: st.DataObject
) -> None:
    """Each pair of pixels has one colour, since it shares its chroma."""
    width, height = size
    level = st.tuples(*[st.integers(0, 255)] * 3)
    count = width // 2 * height
    colors = data.draw(st.lists(level, min_size=count, max_size=count))
    raw = b""
    for color in colors:
        y, u, v = yuv(color, full_range)
        raw += bytes([u, y, v, y] if name == "yuv422" else [y, u, y, v])
    rgb = to_rgb(np.frombuffer(raw, np.uint8), width, height, FORMATS[name], full_range=full_range)
    scene = np.repeat(np.array(colors).reshape(height, width // 2, 3), 2, axis=1)
    # Rounding of luma and chroma, half a step each, through the matrix: 0.5 + 1.772 * 0.5, scaled.
    assert np.abs(rgb.astype(int) - scene).max() <= 3


@pytest.mark.parametrize(("name", "order"), [("rgb8", "rgb"), ("bgr8", "bgr"), ("bgra8", "bgrx")])
def test_channels_come_into_the_order_rgb(name: str, order: str) -> None:
    values = {"r": 10, "g": 20, "b": 30, "x": 40}
    data = np.array([values[letter] for letter in order] * 6, np.uint8)
    assert to_rgb(data, 3, 2, FORMATS[name]).reshape(-1, 3).tolist() == [[10, 20, 30]] * 6


@pytest.mark.parametrize("item", FORMATS.values(), ids=lambda item: item.name)
@given(change=st.integers(-40, 40).filter(bool))
@settings(max_examples=15)
def test_a_buffer_of_another_size_is_no_picture(item: PixelFormat, change: int) -> None:
    size = max(0, data_size(4, 4, item) + change)
    with pytest.raises(PixelDataError, match="4x4"):
        to_rgb(np.zeros(size, np.uint8), 4, 4, item)


@pytest.mark.parametrize("name", ["bayer_rg8", "yuyv"])
def test_odd_sizes_that_a_format_cannot_have(name: str) -> None:
    item = FORMATS[name]
    with pytest.raises(PixelDataError):
        to_rgb(np.zeros(data_size(3, 2, item), np.uint8), 3, 2, item)


def test_bits_above_the_significant_ones_do_not_wrap_around() -> None:
    data = np.array([0x1FFF], "<u2").view(np.uint8)
    assert to_rgb(data, 1, 1, FORMATS["mono12"]).tolist() == [[[255, 255, 255]]]


def test_the_picture_is_a_copy_of_the_buffer() -> None:
    """Drivers write the next picture to the same place."""
    data = np.full(12, 7, np.uint8)
    picture = to_rgb(data, 2, 2, FORMATS["rgb8"])
    data[:] = 200
    assert picture.max() == 7
