"""Evidence as files: the frame as it was, its anomaly map, and a picture for people. Pure.

- The frame is a PNG, lossless: the model run on it again gives the same score.
- The map is a 16-bit PNG that any viewer shows; its text says which scores black and white are,
  so a score comes back within 1/131070 of the map's range.
- The overlay is a small JPEG with the heat on the threshold's scale and boxes around regions.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import PIL.Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from metal_edge.daemon.deciding.decision import Evidence
from metal_edge.domain import FloatMap, Image, Region
from metal_edge.imaging import Crop, overlay

OVERLAY_LONGEST = 1024
OVERLAY_QUALITY = 85
# A little smaller than 9, many times faster.
PNG_COMPRESSION = 1
MAP_TEXT = "metal_edge.map"
_WHITE = 65535
_BOX = (255, 255, 255)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What one view saw of a part.

    Attributes:
        image: uint8 [H, W, 3] RGB, as the camera gave it. Nobody changes it any more.
        anomaly_map: float32 [h, w] over `crop`; None where the model gave none.
        crop: x, y, width, height in source pixels; None: the whole image.
        threshold: the heat's scale; None where there is none.
    """

    camera_id: str
    image: Image
    anomaly_map: FloatMap | None = None
    crop: Crop | None = None
    threshold: float | None = None
    regions: Sequence[Region] = ()


def shown_by(evidence: Evidence, crop: Crop | None) -> Shown | None:
    """What a view's evidence has to show; None without a frame. Nothing is copied.

    Args:
        crop: of the model's preprocessing.
    """
    frame, seen, assessment = evidence.frame, evidence.inspection, evidence.assessment
    if frame is None:
        return None
    return Shown(
        camera_id=frame.camera_id,
        image=frame.image,
        anomaly_map=None if seen is None else seen.anomaly_map,
        crop=crop,
        threshold=None if assessment is None else assessment.rules.threshold,
        regions=() if assessment is None else assessment.regions,
    )


def encode_frame(image: Image) -> bytes:
    """uint8 [H, W, 3] RGB as PNG. Raises ValueError when OpenCV cannot."""
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])


def encode_map(anomaly_map: FloatMap) -> bytes | None:
    """float32 [h, w] as 16-bit PNG with its scale; None when a number in it is not finite."""
    if anomaly_map.size == 0 or not np.isfinite(anomaly_map).all():
        return None
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    step = (high - low) / _WHITE or 1.0
    levels = np.rint((anomaly_map.astype(np.float64) - low) / step).astype(np.uint16)
    text = PngInfo()
    text.add_text(MAP_TEXT, json.dumps({"low": low, "step": step}))
    encoded = io.BytesIO()
    PIL.Image.fromarray(levels).save(encoded, "PNG", pnginfo=text, compress_level=PNG_COMPRESSION)
    return encoded.getvalue()


def decode_map(data: bytes) -> FloatMap:
    """The other way round. Raises ValueError when it is no such file."""
    with PIL.Image.open(io.BytesIO(data)) as picture:
        if not isinstance(picture, PngImageFile) or MAP_TEXT not in picture.text:
            raise ValueError("this PNG is no anomaly map: its text does not give the scale")
        scale = json.loads(str(picture.text[MAP_TEXT]))
        levels = np.asarray(picture)
    values: FloatMap = (scale["low"] + levels * scale["step"]).astype(np.float32)
    return values


def encode_overlay(shown: Shown) -> bytes | None:
    """Heat and regions over the small image, as JPEG; None without a map or a scale for it."""
    threshold = shown.threshold
    if shown.anomaly_map is None or threshold is None or not 0 < threshold < np.inf:
        return None
    height, width = shown.image.shape[:2]
    x, y, crop_width, crop_height = shown.crop or (0, 0, width, height)
    ratio = min(1.0, OVERLAY_LONGEST / max(height, width))
    picture = _shrunk(shown.image, ratio)
    left, top = round(x * ratio), round(y * ratio)
    part = picture[top : round((y + crop_height) * ratio), left : round((x + crop_width) * ratio)]
    if part.size == 0:
        return None
    part[:] = overlay(np.ascontiguousarray(part), shown.anomaly_map, threshold)
    for region in shown.regions:
        corner = (round(region.x * ratio), round(region.y * ratio))
        far = (
            round((region.x + region.width) * ratio) - 1,
            round((region.y + region.height) * ratio) - 1,
        )
        cv2.rectangle(picture, corner, far, _BOX, 1)
    return _encode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, OVERLAY_QUALITY])


def _shrunk(image: Image, ratio: float) -> Image:
    """A copy, in any case."""
    if ratio >= 1:
        return image.copy()
    height, width = image.shape[:2]
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _encode(suffix: str, image: Image, parameters: list[int]) -> bytes:
    done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)
    if not done:
        raise ValueError(f"a picture of shape {image.shape} cannot be encoded as {suffix}")
    return encoded.tobytes()
