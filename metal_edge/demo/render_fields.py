"""What every rendered part shares: the flange's geometry and the noise fields it is cut from.

All of it is computed once per process from constants and kept; a part only draws offsets.
Part coordinates are frame pixels, origin in the flange's axis, x along the belt, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from metal_edge.domain import FloatMap

FRAME_SIZE = 384
CENTRE = (FRAME_SIZE - 1) / 2
OUTER_R = 150.0
BORE_R = 44.0
HUB_R = 80.0
BOLT_CIRCLE_R = 115.0
BOLT_R = 13.0
BOLT_CHAMFER = 2.6
BOLT_ANGLES = tuple(np.deg2rad(15.0 + 60.0 * k) for k in range(6))
_SUPERSAMPLE = 3
# A point on the belt side of the part looks this much nearer to the optical axis.
_PERSPECTIVE = 0.030

ROWS_PER_PIXEL = 2  # radial resolution of the polar texture
THETA_COLUMNS = 1024
POLAR_ROWS = 1024
BELT_PERIOD = 1024
_MAX_ROWS = 400


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """The unrotated flange, float32 [384, 384] each.

    Attributes:
        metal: coverage by upward faces, 0..1.
        wall: coverage by the visible inner walls of holes, 0..1.
        slope_x, slope_y: surface normal over its vertical part (points where the face looks).
        occlusion: 1 where the whole sky is seen, less in grooves and blind holes.
        shadow: how much of the light the part takes from the belt beneath, before the offset.
    """

    metal: FloatMap
    wall: FloatMap
    slope_x: FloatMap
    slope_y: FloatMap
    occlusion: FloatMap
    shadow: FloatMap


def bolt_centre(hole: int) -> tuple[float, float]:
    """Part coordinates of bolt hole 0..5."""
    angle = BOLT_ANGLES[hole]
    return float(BOLT_CIRCLE_R * np.cos(angle)), float(BOLT_CIRCLE_R * np.sin(angle))


def _voids(x: FloatMap, y: FloatMap, drilled: bool) -> list[tuple[FloatMap, float]]:
    """Signed distance to the edge of each void (positive in the material), and its chamfer."""
    radius = np.hypot(x, y)
    keyway = np.maximum(np.abs(y) - 8.0, np.abs(x + BORE_R) - 11.0)
    notch = np.hypot(x - OUTER_R * np.cos(-np.pi / 4), y - OUTER_R * np.sin(-np.pi / 4)) - 9.0
    voids = [
        (OUTER_R - radius, 3.6),
        (np.minimum(radius - BORE_R, keyway), 3.2),
        (notch, 1.8),
    ]
    if drilled:
        for hole in range(6):
            hx, hy = bolt_centre(hole)
            voids.append((np.hypot(x - hx, y - hy) - BOLT_R, BOLT_CHAMFER))
    return voids


def _height(x: FloatMap, y: FloatMap, drilled: bool) -> tuple[FloatMap, FloatMap]:
    """Height of the top face in pixels, and its occlusion."""
    radius = np.hypot(x, y)
    height = 3.4 * np.clip((HUB_R + 3.4 - radius) / 3.4, 0, 1)  # raised hub, conical step
    height -= 1.8 * np.clip(1.0 - np.abs(radius - 62.0) / 2.4, 0, 1)  # seal groove
    height -= 0.7 * np.clip(1.0 - np.abs(radius - 96.0) / 1.2, 0, 1)  # scribed bolt-circle guide
    height -= 0.5 * np.clip(1.0 - np.abs(radius - 139.0) / 1.1, 0, 1)
    occlusion = 1.0 - 0.45 * np.exp(-(((radius - 62.0) / 2.0) ** 2))
    occlusion -= 0.28 * np.exp(-(((radius - HUB_R - 4.6) / 2.2) ** 2))
    for edge, chamfer in _voids(x, y, drilled):
        height -= 0.85 * np.clip(chamfer - edge, 0, chamfer)
    pin = np.hypot(x - 115.0 * np.cos(np.pi * 0.25), y - 115.0 * np.sin(np.pi * 0.25)) - 4.6
    height -= 0.9 * np.clip(1.4 - pin, 0, 1.4)
    occlusion *= 1.0 - 0.86 * np.clip(0.5 - pin, 0, 1)  # blind dowel hole
    return height.astype(np.float32), occlusion.astype(np.float32)


def _engrave(height: FloatMap, occlusion: FloatMap) -> None:
    """Stamps the grade into the face, as a marking press does."""
    size = height.shape[0]
    stamp = np.zeros(height.shape, np.uint8)
    scale = _SUPERSAMPLE * 0.40
    origin = (round(size / 2 - 47 * _SUPERSAMPLE), round(size / 2 + 116 * _SUPERSAMPLE))
    cv2.putText(stamp, "316L", origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 4, cv2.LINE_AA)
    depth = cv2.GaussianBlur(stamp.astype(np.float32) / 255, (0, 0), 1.3)
    height -= 1.6 * depth
    occlusion *= 1 - 0.35 * depth


def _shrink(values: FloatMap) -> FloatMap:
    small = cv2.resize(values, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


@lru_cache(maxsize=2)
def geometry(drilled: bool = True) -> Geometry:
    """The flange, or (not drilled) the same blank before its bolt holes exist."""
    size = FRAME_SIZE * _SUPERSAMPLE
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / _SUPERSAMPLE - 0.5 - CENTRE).astype("f4")
    x, y = np.meshgrid(axis, axis)
    edge = np.minimum.reduce([d for d, _ in _voids(x, y, drilled)])
    zoom = 1.0 / (1.0 - _PERSPECTIVE)
    below = np.minimum.reduce([d for d, _ in _voids(x * zoom, y * zoom, drilled)])
    metal = np.clip(edge * _SUPERSAMPLE + 0.5, 0, 1)
    wall = np.clip(below * _SUPERSAMPLE + 0.5, 0, 1) * (1 - metal)
    height, occlusion = _height(x, y, drilled)
    _engrave(height, occlusion)
    rise_y, rise_x = np.gradient(height, 1.0 / _SUPERSAMPLE)
    edge_y, edge_x = np.gradient(edge, 1.0 / _SUPERSAMPLE)
    # A wall looks away from the material; its occlusion deepens away from the top edge.
    slope_x = np.where(wall > 0.5, -1.3 * edge_x, -rise_x)
    slope_y = np.where(wall > 0.5, -1.3 * edge_y, -rise_y)
    occlusion = np.where(wall > 0.5, np.clip(0.62 + 0.10 * edge, 0.2, 0.62), occlusion)
    silhouette = _shrink(metal)
    near = cv2.GaussianBlur(silhouette, (0, 0), 2.5)
    far = cv2.GaussianBlur(silhouette, (0, 0), 9.0)
    return Geometry(
        metal=silhouette,
        wall=_shrink(wall),
        slope_x=_shrink(slope_x.astype(np.float32)),
        slope_y=_shrink(slope_y.astype(np.float32)),
        occlusion=_shrink(occlusion.astype(np.float32)),
        shadow=np.asarray(0.55 * near + 0.45 * far, np.float32),
    )


def _periodic(
    rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]
) -> FloatMap:
    """White noise under a Gaussian of `sigma` (rows, columns), unit variance, without edges.

    Filtering in the frequency domain wraps both axes, so a polar texture has no seam.
    """
    spectrum = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    fy = np.fft.fftfreq(shape[0])[:, None]
    fx = np.fft.rfftfreq(shape[1])[None, :]
    spectrum *= np.exp(-2 * np.pi**2 * ((fy * sigma[0]) ** 2 + (fx * sigma[1]) ** 2))
    spectrum[0, 0] = 0
    values = np.fft.irfft2(spectrum, s=shape)
    return np.asarray(values / values.std(), np.float32)


@lru_cache(maxsize=1)
def polar_texture() -> FloatMap:
    """Turning marks, float32 [rows, columns, 2]: fine grain and slow streaks, unit variance.

    Rows run along the radius, columns around the axis. Both axes are tiled beyond one period,
    so any offset within a period can be sampled without wrapping.
    """
    rng = np.random.default_rng(np.random.SeedSequence(20_331, spawn_key=(0,)))
    shape = (POLAR_ROWS, THETA_COLUMNS)
    grain = (
        0.62 * _periodic(rng, shape, (0.7, 16.0))
        + 0.62 * _periodic(rng, shape, (0.9, 55.0))
        + 0.40 * _periodic(rng, shape, (1.5, 5.0))
    )
    streak = 0.8 * _periodic(rng, shape, (2.6, 80.0)) + 0.6 * _periodic(rng, shape, (14.0, 60.0))
    both = np.stack([grain, streak], axis=-1)
    tiled = np.concatenate([both, both[:_MAX_ROWS]], axis=0)
    return np.ascontiguousarray(np.concatenate([tiled, tiled, tiled[:, :2]], axis=1))


@lru_cache(maxsize=1)
def belt_texture() -> FloatMap:
    """Rubber belt, float32 [1024 + 384, 1024 + 384], mean 0, variance about 1."""
    rng = np.random.default_rng(np.random.SeedSequence(20_331, spawn_key=(1,)))
    shape = (BELT_PERIOD, BELT_PERIOD)
    y, x = np.mgrid[:BELT_PERIOD, :BELT_PERIOD].astype(np.float32)
    # Fabric impression of the vulcanised cover: period 1024 / 128 = 8 pixels, both diagonals.
    turn = 2 * np.pi * 128 / BELT_PERIOD
    weave = np.sin(turn * (x + y)) * np.sin(turn * (x - y))
    wear = _periodic(rng, shape, (1.2, 130.0))  # rubbed along the running direction
    value = (
        0.55 * _periodic(rng, shape, (0.8, 0.8))
        + 0.50 * _periodic(rng, shape, (2.2, 2.6))
        + 0.45 * weave * (1 + 0.4 * _periodic(rng, shape, (40.0, 40.0)))
        + 0.45 * wear
        + 0.55 * _periodic(rng, shape, (34.0, 60.0))
    )
    return _tile(np.asarray(value, np.float32))


@lru_cache(maxsize=1)
def cloud_texture() -> FloatMap:
    """Slow reflectance change, float32 [1024 + 384, 1024 + 384], unit variance."""
    rng = np.random.default_rng(np.random.SeedSequence(20_331, spawn_key=(2,)))
    shape = (BELT_PERIOD, BELT_PERIOD)
    value = 0.8 * _periodic(rng, shape, (36.0, 36.0)) + 0.6 * _periodic(rng, shape, (13.0, 13.0))
    return _tile(np.asarray(value, np.float32))


def _tile(values: FloatMap) -> FloatMap:
    tall = np.concatenate([values, values[:FRAME_SIZE]], axis=0)
    return np.ascontiguousarray(np.concatenate([tall, tall[:, :FRAME_SIZE]], axis=1))
