"""What cameras send, made into RGB uint8. Pure.

Layouts are those of the GenICam Pixel Format Naming Convention (PFNC 2.x) and, where GigE
Vision has an older packing of its own, of that. More than 8 bits become 8 by dropping the lowest
ones: one fixed scale, the same for every picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.domain import Image


class PixelDataError(ValueError):
    """The data are not those of a picture of that size and format."""


class Packing(StrEnum):
    """How the bits of neighbouring pixels lie in memory."""

    WHOLE = "whole"  # each value in 8 or 16 bits of its own, little endian, right-aligned
    LSB = "lsb"  # PFNC "p": one stream of bits, lowest first, no gap
    GIGE = "gige"  # GigE Vision "Packed": two pixels in three bytes, high bits apart


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """One format.

    Attributes:
        name: as in the settings.
        genicam: name of the entry of the camera's PixelFormat node.
        code: PFNC number.
        bits: significant bits of one value.
        layout: mono, bayer_rg and so on, uyvy, yuyv, rgb, bgr, bgrx or rgbx.
    """

    name: str
    genicam: str
    code: int
    bits: int
    packing: Packing
    layout: str

    @property
    def channels(self) -> int:
        """Values per pixel in memory."""
        return {"uyvy": 2, "yuyv": 2, "rgb": 3, "bgr": 3, "bgrx": 4, "rgbx": 4}.get(self.layout, 1)


_M, _W, _L, _G = "mono", Packing.WHOLE, Packing.LSB, Packing.GIGE


def _bayer(suffix: str, bits: int, packing: Packing, *codes: int) -> tuple[PixelFormat, ...]:
    """The four orders; one code is that of GR, and the others follow it."""
    if len(codes) == 1:
        codes = tuple(range(codes[0], codes[0] + 4))
    return tuple(
        PixelFormat(
            f"bayer_{order}{bits}{suffix.lower()}",
            f"Bayer{order.upper()}{bits}{suffix}",
            code,
            bits,
            packing,
            f"bayer_{order}",
        )
        for order, code in zip(("gr", "rg", "gb", "bg"), codes, strict=True)
    )


_ALL = (
    PixelFormat("mono8", "Mono8", 0x01080001, 8, _W, _M),
    PixelFormat("mono10", "Mono10", 0x01100003, 10, _W, _M),
    PixelFormat("mono10p", "Mono10p", 0x010A0046, 10, _L, _M),
    PixelFormat("mono10packed", "Mono10Packed", 0x010C0004, 10, _G, _M),
    PixelFormat("mono12", "Mono12", 0x01100005, 12, _W, _M),
    PixelFormat("mono12p", "Mono12p", 0x010C0047, 12, _L, _M),
    PixelFormat("mono12packed", "Mono12Packed", 0x010C0006, 12, _G, _M),
    PixelFormat("mono16", "Mono16", 0x01100007, 16, _W, _M),
    *_bayer("", 8, _W, 0x01080008),
    *_bayer("", 10, _W, 0x0110000C),
    *_bayer("p", 10, _L, 0x010A0056, 0x010A0058, 0x010A0054, 0x010A0052),
    *_bayer("Packed", 10, _G, 0x010C0026),
    *_bayer("", 12, _W, 0x01100010),
    *_bayer("p", 12, _L, 0x010C0057, 0x010C0059, 0x010C0055, 0x010C0053),
    *_bayer("Packed", 12, _G, 0x010C002A),
    PixelFormat("yuv422", "YUV422_8_UYVY", 0x0210001F, 8, _W, "uyvy"),
    PixelFormat("yuyv", "YUV422_8", 0x02100032, 8, _W, "yuyv"),
    PixelFormat("rgb8", "RGB8", 0x02180014, 8, _W, "rgb"),
    PixelFormat("bgr8", "BGR8", 0x02180015, 8, _W, "bgr"),
    PixelFormat("bgra8", "BGRa8", 0x02200017, 8, _W, "bgrx"),
    PixelFormat("rgba8", "RGBa8", 0x02200016, 8, _W, "rgbx"),
)
FORMATS = {item.name: item for item in _ALL}
BY_CODE = {item.code: item for item in _ALL}
BY_GENICAM = {item.genicam: item for item in _ALL}

# OpenCV names a Bayer pattern by its second row and column; PFNC by its first.
_DEMOSAIC = {
    "bayer_rg": cv2.COLOR_BayerBG2RGB,
    "bayer_gr": cv2.COLOR_BayerGB2RGB,
    "bayer_gb": cv2.COLOR_BayerGR2RGB,
    "bayer_bg": cv2.COLOR_BayerRG2RGB,
}
_REORDER = {
    "mono": cv2.COLOR_GRAY2RGB,
    "bgr": cv2.COLOR_BGR2RGB,
    "bgrx": cv2.COLOR_BGRA2RGB,
    "rgbx": cv2.COLOR_RGBA2RGB,
}


def data_size(width: int, height: int, pixel_format: PixelFormat) -> int:
    """Bytes of one picture without padding."""
    values = width * height * pixel_format.channels
    if pixel_format.packing is Packing.LSB:
        return -(-values * pixel_format.bits // 8)
    if pixel_format.packing is Packing.GIGE:
        return -(-values * 12 // 8)
    return values * (1 if pixel_format.bits <= 8 else 2)


def without_padding(
    data: NDArray[np.uint8], width: int, height: int, pixel_format: PixelFormat
) -> NDArray[np.uint8]:
    """uint8 [n] without what rows were filled up with; unchanged where that cannot be told."""
    row = data_size(width, 1, pixel_format)
    if height < 1 or data.size % height or data.size // height < row:
        return data
    return data.reshape(height, -1)[:, :row].reshape(-1)


def to_rgb(
    data: NDArray[np.uint8],
    width: int,
    height: int,
    pixel_format: PixelFormat,
    *,
    full_range: bool = True,
) -> Image:
    """RGB of one picture.

    Args:
        data: uint8 [n], without padding between rows.
        width, height: in pixels.
        full_range: YUV whose luma reaches from 0 to 255 (GenICam's YUV422_8); False is 16 to 235
            (ITU-R BT.601, what V4L2 and GStreamer mean unless they say otherwise).

    Returns:
        uint8 [H, W, 3], never a view of `data`.

    Raises:
        PixelDataError: too few or too many bytes, or an odd size that the format cannot have.
    """
    values = _values(data, width, height, pixel_format)
    layout = pixel_format.layout
    if layout in _DEMOSAIC:
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise PixelDataError(f"{pixel_format.name} of {width}x{height} is not possible")
        rgb: Any = cv2.cvtColor(values[..., 0], _DEMOSAIC[layout])
    elif layout in {"uyvy", "yuyv"}:
        if width % 2:
            raise PixelDataError(f"{pixel_format.name} needs an even width, not {width}")
        rgb = _from_yuv(values, layout, full_range=full_range)
    elif layout == "rgb":
        rgb = values.copy()
    else:
        rgb = cv2.cvtColor(values, _REORDER[layout])
    return np.ascontiguousarray(rgb, dtype=np.uint8)


def _values(
    data: NDArray[np.uint8], width: int, height: int, pixel_format: PixelFormat
) -> NDArray[np.uint8]:
    """uint8 [H, W, values per pixel]."""
    if width < 1 or height < 1:
        raise PixelDataError(f"a picture of {width}x{height} is not possible")
    wanted = data_size(width, height, pixel_format)
    if data.size != wanted:
        raise PixelDataError(
            f"{width}x{height} {pixel_format.name} needs {wanted} bytes, got {data.size}"
        )
    count = width * height * pixel_format.channels
    unpack = {Packing.WHOLE: _whole, Packing.LSB: _lsb, Packing.GIGE: _gige}
    flat = unpack[pixel_format.packing](data, count, pixel_format.bits)
    return flat.reshape(height, width, pixel_format.channels)


def _whole(data: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint8]:
    del count
    if bits <= 8:
        return data
    # A stray bit above the significant ones saturates; wrapped around it would look dark.
    wide: NDArray[np.uint16] = data.view("<u2")
    upper: NDArray[np.uint16] = np.minimum(wide >> (bits - 8), 255)
    return upper.astype(np.uint8)


def _lsb(data: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint8]:
    """Value i occupies bits i * bits and up; its upper 8 straddle two bytes at most."""
    group_bits = math.lcm(bits, 8)
    rows = _rows(data, -(-count * bits // group_bits), group_bits // 8)
    out = np.empty((len(rows), group_bits // bits), dtype=np.uint8)
    for place in range(out.shape[1]):
        byte, shift = divmod(place * bits + bits - 8, 8)
        out[:, place] = rows[:, byte] >> shift
        if shift:
            out[:, place] |= rows[:, byte + 1] << (8 - shift)
    return out.reshape(-1)[:count]


def _gige(data: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint8]:
    """Three bytes: the upper 8 bits of a pixel, the low bits of both, the upper 8 of the next."""
    del bits
    return _rows(data, -(-count // 2), 3)[:, (0, 2)].reshape(-1)[:count]


def _rows(data: NDArray[np.uint8], rows: int, size: int) -> NDArray[np.uint8]:
    """uint8 [rows, size]; the last one filled up with zeros."""
    full = np.zeros(rows * size, dtype=np.uint8)
    full[: data.size] = data
    return full.reshape(rows, size)


def _from_yuv(values: NDArray[np.uint8], layout: str, *, full_range: bool) -> Any:
    if not full_range:
        code = cv2.COLOR_YUV2RGB_UYVY if layout == "uyvy" else cv2.COLOR_YUV2RGB_YUYV
        return cv2.cvtColor(values, code)
    luma, chroma = (1, 0) if layout == "uyvy" else (0, 1)
    cb = np.repeat(values[:, 0::2, chroma], 2, axis=1)
    cr = np.repeat(values[:, 1::2, chroma], 2, axis=1)
    return cv2.cvtColor(np.dstack([values[..., luma], cr, cb]), cv2.COLOR_YCrCb2RGB)
