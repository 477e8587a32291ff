"""One part under the camera's light: draw its look, pose its surface, shade it.

Light is linear here; 1.0 is a white that just saturates the sensor. All maps are float32 in
frame pixels. `shade` works on any window of a surface, which is how a defect relights only
the pixels that it touches.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from metal_edge.demo.render_fields import (
    BELT_PERIOD,
    CENTRE,
    FRAME_SIZE,
    OUTER_R,
    POLAR_ROWS,
    ROWS_PER_PIXEL,
    THETA_COLUMNS,
    belt_texture,
    bolt_centre,
    cloud_texture,
    geometry,
    polar_texture,
)
from metal_edge.domain import FloatMap

Window = tuple[slice, slice]  # rows, columns
METAL_TINT = np.array([0.985, 1.0, 1.022], np.float32)
BELT_TINT = np.array([1.02, 1.0, 0.985], np.float32)


@dataclass(frozen=True, slots=True)
class LineSetup:
    """How well the line presents its parts: the fixture's play."""

    rotation_deg: float = 4.0  # parts turn within +- this
    shift_px: float = 4.0  # and stand within +- this of the axis


@dataclass(frozen=True, slots=True)
class Look:
    """What differs between one good part's picture and the next."""

    angle: float  # radians
    shift: tuple[float, float]
    scale: float
    light: tuple[float, float]  # horizontal part of the half vector of the key light
    fill: tuple[float, float]
    exposure: float
    gradient: tuple[float, float]
    albedo: float
    grain: float
    polar_offsets: tuple[tuple[int, int], tuple[int, int]]
    cloud_offset: tuple[int, int]
    belt_offset: tuple[int, int]
    belt_level: float
    sheen: float
    sheen_offset: tuple[int, int]
    shadow_shift: tuple[float, float]
    motion_px: float
    focus_sigma: float
    cast: tuple[float, float, float]


def draw_look(rng: np.random.Generator, setup: LineSetup) -> Look:
    """Draws a good part's look; the order of draws is part of the format of the pictures."""

    def spread(half: float, centre: float = 0.0) -> float:
        return float(rng.uniform(centre - half, centre + half))

    def offset(height: int = BELT_PERIOD, width: int = BELT_PERIOD) -> tuple[int, int]:
        return int(rng.integers(height)), int(rng.integers(width))

    azimuth = np.deg2rad(-128.0 + spread(5.0))  # key light from the upper left
    tilt = 0.42 + spread(0.03)
    fill = np.deg2rad(28.0 + spread(6.0))
    return Look(
        angle=float(np.deg2rad(spread(setup.rotation_deg))),
        shift=(spread(setup.shift_px), spread(setup.shift_px)),
        scale=1.0 + spread(0.004),
        light=(float(tilt * np.cos(azimuth)), float(tilt * np.sin(azimuth))),
        fill=(float(0.45 * np.cos(fill)), float(0.45 * np.sin(fill))),
        exposure=1.0 + spread(0.06),
        gradient=(spread(0.05, -0.04), spread(0.05, -0.05)),
        albedo=1.0 + spread(0.05),
        grain=1.0 + spread(0.18),
        polar_offsets=(
            offset(POLAR_ROWS, THETA_COLUMNS),
            offset(POLAR_ROWS, THETA_COLUMNS),
        ),
        cloud_offset=offset(),
        belt_offset=offset(),
        belt_level=1.0 + spread(0.10),
        sheen=float(rng.uniform(0.0, 1.0)),
        sheen_offset=offset(),
        shadow_shift=(spread(1.0, 8.0), spread(1.0, 10.0)),
        motion_px=float(rng.uniform(0.6, 2.0)),
        focus_sigma=float(rng.uniform(0.62, 0.82)),
        cast=(1.0 + spread(0.012), 1.0, 1.0 + spread(0.015)),
    )


@dataclass(slots=True, eq=False)
class Surface:
    """The posed part, float32 [h, w] each; see Geometry for the first five.

    `along_x`, `along_y`: unit vector along the turning marks. `grain`, `streak`: their texture.
    `cloud`: slow reflectance change of the face. `shadow`: light taken from the belt.
    """

    metal: FloatMap
    wall: FloatMap
    slope_x: FloatMap
    slope_y: FloatMap
    occlusion: FloatMap
    shadow: FloatMap
    along_x: FloatMap
    along_y: FloatMap
    grain: FloatMap
    streak: FloatMap
    cloud: FloatMap

    def window(self, at: Window) -> Surface:
        """A copy of the maps inside `at`, free to be changed."""
        return Surface(*(getattr(self, name)[at].copy() for name in self.__slots__))


def to_frame(look: Look, x: float, y: float) -> tuple[float, float]:
    """Part coordinates -> frame column and row."""
    cos, sin = np.cos(look.angle) * look.scale, np.sin(look.angle) * look.scale
    column = cos * x - sin * y + CENTRE + look.shift[0]
    row = sin * x + cos * y + CENTRE + look.shift[1]
    return float(column), float(row)


def bolt_in_frame(look: Look, hole: int) -> tuple[float, float]:
    """Frame column and row of a bolt hole's centre."""
    return to_frame(look, *bolt_centre(hole))


def _warp(values: FloatMap, look: Look, shift: tuple[float, float] = (0.0, 0.0)) -> FloatMap:
    column, row = to_frame(look, 0.0, 0.0)
    cos, sin = np.cos(look.angle) * look.scale, np.sin(look.angle) * look.scale
    # Constant term: where the geometry's pixel (0, 0), i.e. part (-CENTRE, -CENTRE), lands.
    matrix = np.array(
        [
            [cos, -sin, column + shift[0] - (cos - sin) * CENTRE],
            [sin, cos, row + shift[1] - (sin + cos) * CENTRE],
        ]
    )
    size = (FRAME_SIZE, FRAME_SIZE)
    return np.asarray(cv2.warpAffine(values, matrix, size, flags=cv2.INTER_LINEAR), np.float32)


def pose_surface(look: Look, drilled: bool = True) -> Surface:
    """The part as it lies under the camera, float32 [384, 384] maps."""
    shape = geometry(drilled)
    flat = _warp(_stacked(drilled), look)
    metal, wall, rise_x, rise_y = (np.ascontiguousarray(flat[..., k]) for k in range(4))
    cos, sin = np.float32(np.cos(look.angle)), np.float32(np.sin(look.angle))
    column, row = to_frame(look, 0.0, 0.0)
    x, y = np.meshgrid(
        np.arange(FRAME_SIZE, dtype=np.float32) - np.float32(column),
        np.arange(FRAME_SIZE, dtype=np.float32) - np.float32(row),
    )
    radius, theta = cv2.cartToPolar(x, y)
    inverse = 1.0 / np.maximum(radius, 1.0)
    texture = _polar_cut(np.asarray(radius, np.float32), np.asarray(theta, np.float32), look)
    top, left = look.cloud_offset
    return Surface(
        metal=metal,
        wall=wall,
        slope_x=cos * rise_x - sin * rise_y,
        slope_y=sin * rise_x + cos * rise_y,
        occlusion=_warp(shape.occlusion, look),
        shadow=_warp(shape.shadow, look, look.shadow_shift),
        along_x=-y * inverse,
        along_y=x * inverse,
        grain=np.ascontiguousarray(texture[..., 0]),
        streak=np.ascontiguousarray(texture[..., 1]),
        cloud=cloud_texture()[top : top + FRAME_SIZE, left : left + FRAME_SIZE],
    )


_STACKS: dict[bool, FloatMap] = {}


def _stacked(drilled: bool) -> FloatMap:
    """Four of the geometry's maps interleaved, so that one warp moves them all."""
    if drilled not in _STACKS:
        g = geometry(drilled)
        _STACKS[drilled] = np.stack([g.metal, g.wall, g.slope_x, g.slope_y], axis=-1)
    return _STACKS[drilled]


def _polar_cut(radius: FloatMap, theta: FloatMap, look: Look) -> FloatMap:
    """Two cuts of the turning marks, mixed, so that no two parts share a texture."""
    rows = np.minimum(radius, OUTER_R + 6.0) * np.float32(ROWS_PER_PIXEL)
    columns = theta * np.float32(THETA_COLUMNS / (2 * np.pi))
    first, second = (
        cv2.remap(polar_texture(), columns + np.float32(c), rows + np.float32(r), cv2.INTER_LINEAR)
        for r, c in look.polar_offsets
    )
    return np.asarray((first + second) * np.float32(0.7071), np.float32)


def shade(surface: Surface, look: Look) -> FloatMap:
    """Luminance of the part, float32 [h, w], linear.

    Turned metal mirrors a light wherever its marks run square to the half vector (Kajiya and
    Kay 1989, for hair); that draws the two bright fans of every faced part. Chamfers and
    dents are small facets: they catch or lose the key light by their slope.
    """
    s = surface
    length = 1.0 / np.sqrt(1.0 + s.slope_x**2 + s.slope_y**2)
    key_x, key_y = look.light
    facing = (key_x * s.slope_x + key_y * s.slope_y + np.float32(0.9)) * length
    grain = s.grain * np.float32(look.grain)
    fans = np.zeros_like(facing)
    for (hx, hy), strength, width in ((look.light, 0.36, 0.135), (look.fill, 0.15, 0.20)):
        # The marks' own waviness tilts each one a little, which breaks the fan into hairs.
        across = s.along_x * np.float32(hx) + s.along_y * np.float32(hy)
        across += s.slope_x * np.float32(0.35 * hx) + s.slope_y * np.float32(0.35 * hy)
        across += np.float32(0.030) * s.streak + np.float32(0.022) * grain
        fans += np.float32(strength) * np.exp(across * across * np.float32(-0.5 / width**2))
    glint = np.maximum(facing - np.float32(0.92), 0) * np.float32(4.5)
    body = np.float32(0.06) + np.float32(0.20) * np.maximum(facing, 0)
    level = body * (1 + np.float32(0.045) * grain + np.float32(0.035) * s.streak)
    level += fans * length**3 * (1 + np.float32(0.10) * grain + np.float32(0.05) * s.streak)
    level += glint
    level *= s.occlusion * (1 + np.float32(0.035) * s.cloud)
    return np.asarray(level * np.float32(look.albedo), np.float32)


def belt_luminance(surface: Surface, look: Look) -> FloatMap:
    """The belt with the part's shadow on it, float32 [384, 384], linear."""
    top, left = look.belt_offset
    cut = belt_texture()[top : top + FRAME_SIZE, left : left + FRAME_SIZE]
    level = np.float32(0.040 * look.belt_level) * (1 + np.float32(0.17) * cut)
    lit = 1 - np.float32(0.80) * surface.shadow
    # Through a hole the belt sees little sky: the part stands over it.
    return np.asarray(np.maximum(level, 0.004) * lit, np.float32)


def compose(surface: Surface, belt: FloatMap, look: Look, at: Window | None = None) -> FloatMap:
    """Part over belt, float32 [h, w, 3], linear RGB before the lens; `at` says which window."""
    part = np.maximum(shade(surface, look), np.float32(0.003))
    cover = np.minimum(surface.metal + surface.wall, 1)
    below = belt if at is None else belt[at]
    metal, dark = part * cover, below * (1 - cover)
    scene = np.empty((*cover.shape, 3), np.float32)
    film = _oil_film(surface.metal, look, at)
    for channel in range(3):
        tint = METAL_TINT[channel] + film * np.float32((0.035, 0.0, -0.03)[channel])
        scene[..., channel] = metal * tint + dark * BELT_TINT[channel]
    return scene


def _oil_film(metal: FloatMap, look: Look, at: Window | None) -> FloatMap:
    """Faint interference colour where a film of oil is left, -1..1 [h, w]."""
    top, left = look.sheen_offset
    field = cloud_texture()[top : top + FRAME_SIZE, left : left + FRAME_SIZE]
    if at is not None:
        field = field[at]
    thick = np.clip(field - np.float32(0.4), 0, 2)
    return np.asarray(np.float32(look.sheen) * thick * (2 - thick) * metal, np.float32)
