"""Small pictures, made and written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from metal_edge.domain import Image


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
