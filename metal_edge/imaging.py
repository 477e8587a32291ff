"""Pictures in and out: read safely, crop and resize once for everyone, draw overlays.

Files are decoded by Pillow, which raises on a truncated file; OpenCV returns half a picture.
A conversion is made where it has exactly one meaning (grey to three equal channels, a palette
to its colours, an alpha that hides nothing dropped, EXIF orientation applied). Where it would
need a guess (16 bits to 8, transparency, CMYK, which page of many) the file is refused.
Colour profiles are not applied: the stored values are the picture.
"""

from __future__ import annotations

import io
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ExifTags, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile

from metal_edge.domain import FloatMap, Image
from metal_edge.errors import DataError, MetalEdgeError, MissingInputError
from metal_edge.files import write_bytes

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 * 1024 * 1024  # more than MAX_PIXELS of uncompressed RGBA

Crop = tuple[int, int, int, int]  # x, y, width, height in source pixels

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_MODES = frozenset({"1", "L", "P", "RGB", "LA", "PA", "RGBA"})
_DAMAGED = "copy the file again from its source, or remove it"
_EIGHT_BIT = "convert it to 8 bit with one fixed scale for all pictures"
_SMALLER = "crop or shrink the picture before using it"

# The limit here is lower than Pillow's and checked for every file, so its warning adds nothing.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What a file's header says: the size after EXIF orientation, and Pillow's mode name."""

    width: int
    height: int
    mode: str


def read_image(path: Path) -> Image:
    """Reads one picture.

    PNG checksums are verified. A JPEG must end with its end marker, so that a file whose tail
    was never written is refused; other damage inside JPEG data cannot be detected.

    Returns:
        uint8 [H, W, 3] RGB, C-contiguous, EXIF orientation applied.

    Raises:
        MissingInputError: no such file.
        DataError: not readable, not a supported picture, damaged, too large, or of a kind
            that cannot be converted without a guess; names the file.
    """
    data = read_bytes(path)
    info = _inspect(io.BytesIO(data), path)
    try:
        return _decode(data, path, info)
    except MetalEdgeError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path} is damaged or cut short ({error})", _DAMAGED) from error


def image_info(path: Path) -> ImageInfo:
    """Size and mode from the header alone; refuses whatever `read_image` would refuse there.

    Raises:
        MissingInputError, DataError: as `read_image`.
    """
    with _open_file(path) as file:
        return _inspect(file, path)


def read_mask(path: Path, height: int, width: int) -> NDArray[np.bool_]:
    """Reads a ground-truth mask: a pixel is defect where its largest channel is above 127.

    A mask of zeros and ones only is a label image: there, one is defect. A mask whose values
    reach between 2 and 127 would silently hold no defect and is refused.

    Returns:
        bool [height, width].

    Raises:
        MissingInputError, DataError: as `read_image`, or another size.
    """
    values = read_image(path).max(axis=2)
    if values.shape != (height, width):
        raise DataError(
            f"mask {path} is {values.shape[1]}x{values.shape[0]}, its image {width}x{height}",
            "export the mask at the image's size",
        )
    peak = int(values.max())
    if 1 < peak <= 127:
        raise DataError(
            f"mask {path} has values up to {peak}, which could mean anything",
            "save masks with 0 for good and 255 for defect",
        )
    mask: NDArray[np.bool_] = values > (0 if peak == 1 else 127)
    return mask


def read_bytes(path: Path) -> bytes:
    """A regular file's content, at most MAX_FILE_BYTES.

    Raises:
        MissingInputError: no such file.
        DataError: no regular file, not readable, too large.
    """
    with _open_file(path) as file:
        return file.read()


@contextmanager
def _open_file(path: Path) -> Iterator[BinaryIO]:
    try:
        status = path.stat()
        # Checked before opening: opening a named pipe would wait for a writer.
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise DataError(f"{path} is {kind}, not an image", "rename or remove it")
        if status.st_size > MAX_FILE_BYTES:
            mib = status.st_size / 2**20
            raise DataError(
                f"{path} has {mib:.0f} MiB, the limit is {MAX_FILE_BYTES // 2**20} MiB", _SMALLER
            )
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise MissingInputError(f"{path} does not exist", "check the path") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror or error})", "correct its permissions or link"
        ) from error


def _too_many_pixels(path: Path, size: str) -> DataError:
    limit = f"{MAX_PIXELS // 1_000_000} million pixels"
    return DataError(f"{path} is {size}, the limit is {limit}", _SMALLER)


def _inspect(file: BinaryIO, path: Path) -> ImageInfo:
    """Every check that needs no pixel; reads the header only."""
    try:
        head = file.read(32)
        if not head:
            raise DataError(f"{path} is empty", _DAMAGED)
        file.seek(0)
        with PIL.Image.open(file, formats=_FORMATS) as image:
            return _check_header(image, path, head)
    except PIL.UnidentifiedImageError as error:
        names = ", ".join(_FORMATS)
        raise DataError(f"{path} is not a readable {names} picture", _DAMAGED) from error
    except PIL.Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))  # only the message knows the size
        raise _too_many_pixels(path, f"of {count[0] if count else 'too many'} pixels") from error
    except MetalEdgeError:
        raise
    except Exception as error:  # a broken header makes Pillow raise many kinds
        raise DataError(f"{path} has a damaged header ({error})", _DAMAGED) from error


def _check_header(image: PIL.Image.Image, path: Path, head: bytes) -> ImageInfo:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(path, f"{width}x{height}")
    if getattr(image, "is_animated", False):
        raise DataError(f"{path} holds more than one picture", "save each in a file of its own")
    if image.mode.startswith(("I", "F")) or _is_deep(image, head):
        raise DataError(f"{path} has more than 8 bits per channel", _EIGHT_BIT)
    if image.mode not in _MODES:
        raise DataError(f"{path} has colour mode {image.mode}", "convert it to 8-bit RGB or grey")
    # TIFF sizes are already turned. The base class reads what the header has; PNG's own
    # getexif would decode the picture to look for more.
    if not isinstance(image, TiffImageFile):
        orientation = PIL.Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        if orientation in (5, 6, 7, 8):
            width, height = height, width
    return ImageInfo(width, height, image.mode)


def _is_deep(image: PIL.Image.Image, head: bytes) -> bool:
    """Pillow opens 16-bit RGB as mode RGB and drops the lower byte, so the mode is no proof."""
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITSPERSAMPLE, (1,))
        kinds = image.tag_v2.get(SAMPLEFORMAT, (1,))
        return max(bits) > 8 or any(kind != 1 for kind in kinds)  # 1: unsigned integer
    return image.format == "PNG" and head[24] > 8  # IHDR: width, height, bit depth


def _decode(data: bytes, path: Path, info: ImageInfo) -> Image:
    with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        # Start of scan after the last end of image: the tail was never written.
        if image.format == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise DataError(f"{path} is cut short (no JPEG end marker)", _DAMAGED)
        image.verify()  # PNG: the checksum of every chunk; leaves the object unusable
    with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        image.load()
        turned = ImageOps.exif_transpose(image)
        if turned.size != (info.width, info.height):
            raise DataError(
                f"{path} stores its orientation after its pixels", "save it upright, without EXIF"
            )
        if turned.has_transparency_data:
            turned = _without_alpha(turned, path)
        return np.array(turned.convert("RGB"), dtype=np.uint8, order="C")


def _without_alpha(image: PIL.Image.Image, path: Path) -> PIL.Image.Image:
    rgba = image.convert("RGBA")
    lowest = np.asarray(rgba.getchannel("A")).min()
    if lowest < 255:
        raise DataError(f"{path} is partly transparent", "flatten it onto a fixed background")
    return rgba


def prepare(image: Image, width: int, height: int, crop: Crop | None = None) -> Image:
    """Crops and resizes; the one way from a frame to the model's input.

    An axis that shrinks is averaged by area; one that grows is then interpolated linearly.

    Args:
        image: uint8 [H, W, 3].
        width, height: of the result, in pixels.
        crop: x, y, width, height in source pixels; None takes the whole frame.

    Returns:
        uint8 [height, width, 3], C-contiguous, never a view of `image`.

    Raises:
        DataError: the crop is empty or not inside the image.
        ValueError: not uint8 [H, W, 3], or a size below 1.
    """
    _check_rgb(image)
    if width < 1 or height < 1:
        raise ValueError(f"size must be at least 1x1, got {width}x{height}")
    if crop is not None:
        image = _cropped(image, crop)
    rows, columns = image.shape[:2]
    middle = (min(columns, width), min(rows, height))
    out = np.array(image, order="C")
    # In two steps: OpenCV's INTER_AREA turns into linear as soon as one axis grows.
    if middle != (columns, rows):
        out = np.asarray(cv2.resize(out, middle, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if middle != (width, height):
        size = (width, height)
        out = np.asarray(cv2.resize(out, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return out


def _check_rgb(image: Image) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {image.shape}")


def _cropped(image: Image, crop: Crop) -> Image:
    x, y, width, height = crop
    rows, columns = image.shape[:2]
    inside = x >= 0 and y >= 0 and x + width <= columns and y + height <= rows
    if width < 1 or height < 1 or not inside:
        raise DataError(
            f"crop {x},{y},{width},{height} does not lie inside the {columns}x{rows} image",
            "give x,y,width,height in source pixels",
        )
    return image[y : y + height, x : x + width]


_HEAT = 0.6  # opacity at twice the threshold and above
_THRESHOLD_LINE = (0, 255, 255)  # cyan: not in the heat's colours
_MASK_LINE = (255, 255, 255)


def heatmap(anomaly_map: FloatMap, threshold: float) -> Image:
    """Colours an anomaly map on a fixed scale: 0 is black, 2 x threshold and above brightest.

    The scale never depends on the map, so two pictures compare. NaN is shown as hottest.

    Args:
        anomaly_map: float [h, w].
        threshold: finite and above 0.

    Returns:
        uint8 [h, w, 3] RGB.

    Raises:
        ValueError: the threshold gives no scale.
    """
    levels = np.rint(_heat(anomaly_map, threshold) * 255).astype(np.uint8)
    bgr = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return np.array(bgr[..., ::-1], dtype=np.uint8, order="C")


def overlay(
    image: Image,
    anomaly_map: FloatMap,
    threshold: float,
    mask: NDArray[np.bool_] | None = None,
) -> Image:
    """Lays the heat over the picture, with a cyan line where the map crosses the threshold.

    Args:
        image: uint8 [H, W, 3] of what the map covers (after any crop).
        anomaly_map: float [h, w], interpolated linearly to the image's size.
        threshold: finite and above 0; see `heatmap` for the scale.
        mask: bool [H, W] ground truth, outlined in white.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        ValueError: wrong shapes, or the threshold gives no scale.
    """
    _check_rgb(image)
    if mask is not None and mask.shape != image.shape[:2]:
        raise ValueError(f"mask {mask.shape} is not of the image's size {image.shape[:2]}")
    rows, columns = image.shape[:2]
    finite = _finite(anomaly_map, threshold)
    full = np.asarray(cv2.resize(finite, (columns, rows)), dtype=np.float32)
    opacity = _HEAT * _heat(full, threshold)[..., None]
    blend = image * (1 - opacity) + heatmap(full, threshold) * opacity
    out: Image = np.rint(blend).astype(np.uint8)
    if mask is not None:
        _outline(out, mask, _MASK_LINE)
    _outline(out, full >= threshold, _THRESHOLD_LINE)
    return out


def _finite(anomaly_map: FloatMap, threshold: float) -> FloatMap:
    if not (np.isfinite(threshold) and threshold > 0):
        raise ValueError(f"threshold must be finite and above 0, got {threshold}")
    if anomaly_map.ndim != 2:
        raise ValueError(f"anomaly map must be [h, w], got {anomaly_map.shape}")
    top = 2 * threshold
    values = np.nan_to_num(anomaly_map, nan=top, posinf=top, neginf=0.0)
    return np.asarray(values, dtype=np.float32)


def _heat(anomaly_map: FloatMap, threshold: float) -> FloatMap:
    """0..1: half is the threshold."""
    relative = _finite(anomaly_map, threshold) / (2 * threshold)
    return np.asarray(np.clip(relative, 0, 1), dtype=np.float32)


def _outline(image: Image, area: NDArray[np.bool_], color: tuple[int, int, int]) -> None:
    lines, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, lines, -1, color, max(1, max(image.shape[:2]) // 256))


def write_png(path: Path, image: Image) -> None:
    """Writes a picture as PNG, all or nothing: a sibling is written and renamed into place.

    Args:
        path: destination; missing parent folders are made.
        image: uint8 [H, W, 3] RGB.

    Raises:
        OutputError: the place cannot be written; an existing file there is unchanged.
        ValueError: not uint8 [H, W, 3].
    """
    _check_rgb(image)
    encoded = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(image)).save(encoded, format="PNG")
    write_bytes(path, encoded.getvalue())
