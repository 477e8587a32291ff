"""From scene light to camera bytes: lens, motion, vignetting, sensor noise, tone curve."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.demo.render_fields import FRAME_SIZE
from metal_edge.demo.render_scene import Look, Window
from metal_edge.domain import FloatMap, Image

BLUR_REACH = 4  # pixels: no kernel here reaches further
_LEVELS = 4096  # 12-bit converter
_FULL_SCALE = 1.25  # linear light at its last code
_SHOT = 1.7e-4  # variance per unit of light: about 6000 electrons at saturation
_READ = 9.0e-4


def lens_kernels(look: Look) -> tuple[FloatMap, FloatMap]:
    """Blur along the belt (lens and motion) and across it (lens), each summing to 1."""
    at = np.arange(-BLUR_REACH, BLUR_REACH + 1, dtype=np.float32)
    lens = np.exp(-0.5 * (at / look.focus_sigma) ** 2)
    lens /= lens.sum()
    # Share of each pixel that the exposure sweeps over, motion centred on the pixel.
    half = look.motion_px / 2
    sweep = np.clip(np.minimum(half, at + 0.5) - np.maximum(-half, at - 0.5), 0, None)
    along = np.convolve(lens, sweep / sweep.sum(), mode="same")
    return (along / along.sum()).astype(np.float32), lens.astype(np.float32)


@lru_cache(maxsize=1)
def _axes() -> tuple[FloatMap, FloatMap, FloatMap]:
    axis = np.linspace(-1, 1, FRAME_SIZE, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y, np.asarray(1 - 0.17 * (x**2 + y**2) + 0.03 * (x**2 + y**2) ** 2, np.float32)


def expose(scene: FloatMap, look: Look, at: Window | None = None) -> FloatMap:
    """Light on the sensor, float32 [h, w, 3]; rows and columns `at` of the frame.

    Borders are reflected: a caller with a window keeps BLUR_REACH pixels to spare.
    """
    along, across = lens_kernels(look)
    blurred = cv2.sepFilter2D(scene, -1, along, across, borderType=cv2.BORDER_REFLECT_101)
    light: FloatMap = np.asarray(blurred, np.float32)
    x, y, vignette = _axes()
    if at is not None:
        x, y, vignette = x[at], y[at], vignette[at]
    field: FloatMap = vignette * (
        1 + np.float32(look.gradient[0]) * x + np.float32(look.gradient[1]) * y
    )
    field = field * np.float32(look.exposure)
    for channel in range(3):
        light[..., channel] *= field * np.float32(look.cast[channel])
    return light


@lru_cache(maxsize=1)
def _tone_curve() -> FloatMap:
    """Display level 0..255 for each converter code: gamma 2.2 with a shoulder."""
    light = np.linspace(0, _FULL_SCALE, _LEVELS, dtype=np.float32)
    knee = 0.72
    rolled = knee + (1 - knee) * np.tanh((light - knee) / (1 - knee))
    light = np.where(light > knee, rolled, light)
    return np.asarray(255.0 * light ** (1 / 2.2), np.float32)


@lru_cache(maxsize=1)
def _tone_bytes() -> NDArray[np.uint8]:
    return np.rint(_tone_curve()).astype(np.uint8)


def _codes(light: FloatMap) -> NDArray[np.uint16]:
    scaled = light * np.float32((_LEVELS - 1) / _FULL_SCALE) + np.float32(0.5)
    return np.asarray(np.clip(scaled, 0, _LEVELS - 1), np.uint16)


def display(light: FloatMap) -> FloatMap:
    """Noise-free display levels, float32 0..255, any shape."""
    curve = _tone_curve()
    position = light * np.float32((_LEVELS - 1) / _FULL_SCALE)
    return np.asarray(np.interp(position, np.arange(_LEVELS), curve), np.float32)


def develop(light: FloatMap, rng: np.random.Generator) -> Image:
    """The camera's bytes, uint8 [384, 384, 3] RGB: shot and read noise, conversion, tone."""
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    deviation = np.sqrt(np.maximum(light, 0) * np.float32(_SHOT) + np.float32(_READ**2))
    return np.take(_tone_bytes(), _codes(light + noise * deviation))
