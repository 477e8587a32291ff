"""One painter per defect kind: draws it into the scene's light, before lens and sensor.

A painter returns the window that it may have changed and that window's new light. `severity`
runs from 0 (mild) to 1 (gross).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.demo.render_fields import BOLT_CHAMFER, BOLT_R, FRAME_SIZE
from metal_edge.demo.render_scene import (
    Look,
    Surface,
    Window,
    bolt_in_frame,
    compose,
    pose_surface,
)
from metal_edge.domain import FloatMap

Patch = tuple[Window, FloatMap]
Points = NDArray[np.float64]  # [n, 2] frame column, row
_FINE = 4  # sub-pixels per pixel when a shape is drawn


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """The good part that a defect is painted on: its maps and its light [384, 384, 3]."""

    surface: Surface
    look: Look
    belt: FloatMap
    scene: FloatMap


Painter = Callable[[np.random.Generator, float, Canvas], Patch]


def _window(points: Points, margin: float) -> Window:
    low = np.floor(points.min(axis=0) - margin).astype(int)
    high = np.ceil(points.max(axis=0) + margin).astype(int) + 1
    left, top = np.clip(low, 0, FRAME_SIZE - 1)
    right, bottom = np.clip(high, 1, FRAME_SIZE)
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def _spot(rng: np.random.Generator, canvas: Canvas, margin: int) -> Points:
    """A place on the part at least `margin` pixels from any edge, [1, 2]."""
    face = ((canvas.surface.metal > 0.99) & (canvas.surface.occlusion > 0.5)).astype(np.uint8)
    free = cv2.erode(face, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    rows, columns = np.nonzero(free)
    pick = int(rng.integers(rows.size))
    return np.array([[columns[pick], rows[pick]]], np.float64)


def _mark_angle(canvas: Canvas, middle: Points) -> float:
    """Direction of the turning marks at a spot, radians."""
    column, row = middle[0].astype(int)
    return float(
        np.arctan2(canvas.surface.along_y[row, column], canvas.surface.along_x[row, column])
    )


def _draw_curve(points: Points, values: NDArray[np.float64], width: float, at: Window) -> FloatMap:
    """A curve with a value 0..1 per segment, antialiased, float32 [h, w]."""
    height, breadth = at[0].stop - at[0].start, at[1].stop - at[1].start
    fine = np.zeros((height * _FINE, breadth * _FINE), np.uint8)
    local = (points - [at[1].start, at[0].start] + 0.5) * _FINE
    ends = np.rint(local).astype(int)
    thickness = max(1, round(width * _FINE))
    for start, end, value in zip(ends[:-1], ends[1:], values, strict=False):
        cv2.line(fine, start.tolist(), end.tolist(), int(255 * value), thickness, cv2.LINE_8)
    small = cv2.resize(fine, (breadth, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small.astype(np.float32) / 255, np.float32)


def _bent_line(
    rng: np.random.Generator, middle: Points, angle: float, length: float, bend: float
) -> Points:
    """A gently bent, slightly unsteady line through `middle` at `angle` (radians), [40, 2]."""
    t = np.linspace(-0.5, 0.5, 40)
    unsteady = np.cumsum(rng.normal(0, 0.003 * length, t.size))
    side = length * bend * (t**2 - 1 / 12) * 4 + unsteady - unsteady[t.size // 2]
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    return np.asarray(middle + length * t[:, None] * along + side[:, None] * across)


def scratch(rng: np.random.Generator, severity: float, canvas: Canvas) -> Patch:
    """A groove with a bright burr on one flank and a dark one on the other."""
    length = 36 + 90 * severity + rng.uniform(0, 20)
    width = 1.1 + 1.1 * severity
    middle = _spot(rng, canvas, 6)
    # Along the turning marks nobody could tell it from one of them.
    angle = _mark_angle(canvas, middle) + np.deg2rad(rng.uniform(20, 160))
    points = _bent_line(rng, middle, angle, length, rng.uniform(-0.22, 0.22))
    at = _window(points, 6)
    progress = np.linspace(0, 1, len(points) - 1)
    pressure = np.clip(np.minimum(progress, 1 - progress) * 7, 0.25, 1)
    pressure *= np.clip(rng.normal(0.9, 0.14, progress.size), 0.45, 1)
    groove = _draw_curve(points, pressure, width, at)
    key = np.array(canvas.look.light) / np.hypot(*canvas.look.light)
    moved = _draw_curve(points + 0.9 * key, pressure, width, at)
    if rng.uniform() < 0.35:
        second = points + rng.uniform(2.5, 4.5) * rng.choice([-1.0, 1.0])
        groove = np.maximum(groove, 0.6 * _draw_curve(second, pressure, 0.8 * width, at))
    metal = canvas.surface.metal[at]
    bright = np.float32(0.65 + 0.65 * severity) * groove * metal
    dark = np.float32(0.30 + 0.35 * severity) * np.clip(moved - 0.6 * groove, 0, 1) * metal
    gain = (1 + bright) * (1 - dark)
    return at, np.asarray(canvas.scene[at] * gain[..., None], np.float32)


def dent(rng: np.random.Generator, severity: float, canvas: Canvas) -> Patch:
    """A pressed hollow with a raised lip: the slopes change, so the light does."""
    radius = 6.5 + 6.0 * severity + rng.uniform(0, 2)
    middle = _spot(rng, canvas, 7)
    at = _window(middle, 3.2 * radius)
    rows, columns = np.mgrid[at].astype(np.float64)
    turn, squash = rng.uniform(0, np.pi), rng.uniform(0.65, 1.0)
    dx, dy = columns - middle[0, 0], rows - middle[0, 1]
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / radius
    v = (-np.sin(turn) * dx + np.cos(turn) * dy) / (radius * squash)
    distance = u * u + v * v
    depth = radius * (0.30 + 0.45 * severity)
    height = depth * (
        -np.exp(-1.6 * distance) + 0.30 * np.exp(-2.5 * (np.sqrt(distance) - 1.5) ** 2)
    )
    rise_y, rise_x = np.gradient(height)
    surface = canvas.surface.window(at)
    surface.slope_x -= rise_x.astype(np.float32)
    surface.slope_y -= rise_y.astype(np.float32)
    surface.occlusion *= (1 - (0.15 + 0.25 * severity) * np.exp(-1.6 * distance)).astype(np.float32)
    return at, compose(surface, canvas.belt, canvas.look, at)


# What is left of red, green and blue under a thick stain.
_STAINS: tuple[tuple[float, float, float], ...] = (
    (0.42, 0.38, 0.32),  # old oil
    (0.62, 0.36, 0.20),  # rust
    (0.78, 0.62, 0.36),  # heat tint, straw
    (0.45, 0.50, 0.62),  # heat tint, blue
    (0.52, 0.53, 0.54),  # dried coolant
)


def stain(rng: np.random.Generator, severity: float, canvas: Canvas) -> Patch:
    """A blot with a ragged edge, darker where the liquid dried last."""
    radius = 11 + 15 * severity + rng.uniform(0, 4)
    middle = _spot(rng, canvas, 6)
    at = _window(middle, 2.2 * radius)
    rows, columns = np.mgrid[at].astype(np.float64)
    distance = np.hypot(columns - middle[0, 0], rows - middle[0, 1]) / radius
    rough = rng.standard_normal(distance.shape)
    blotch = cv2.GaussianBlur(rough, (0, 0), 0.30 * radius)
    ragged = cv2.GaussianBlur(rng.standard_normal(distance.shape), (0, 0), 0.12 * radius)
    speckle = cv2.GaussianBlur(rough, (0, 0), 1.6)
    field = 1 - distance + 0.22 * blotch / blotch.std() + 0.12 * ragged / ragged.std()
    body = np.clip(field / 0.60, 0, 1) ** 0.7 * np.clip(2.1 - distance, 0, 1)
    rim = np.exp(-(((field - 0.12) / 0.12) ** 2)) * np.clip(2.1 - distance, 0, 1)
    colour = np.array(_STAINS[int(rng.integers(len(_STAINS)))])
    cover = np.clip(body * (0.80 + 0.12 * speckle / speckle.std()) + 0.35 * rim, 0, 1.2)
    thickness = (0.38 + 0.50 * severity) * cover * canvas.surface.metal[at]
    gain = colour[None, None] ** thickness[..., None]  # Beer-Lambert: twice as thick, squared
    return at, np.asarray(canvas.scene[at] * gain, np.float32)


def missing_hole(rng: np.random.Generator, severity: float, canvas: Canvas) -> Patch:
    """A bolt hole left undrilled; the mildest ones were at least spotted with a centre drill."""
    column, row = bolt_in_frame(canvas.look, int(rng.integers(6)))
    middle = np.array([[column, row]])
    at = _window(middle, BOLT_R + BOLT_CHAMFER + 5)
    surface = pose_surface(canvas.look, drilled=False).window(at)
    mark = 5.5 * (1 - severity)
    if mark > 1.5:
        rows, columns = np.mgrid[at].astype(np.float64)
        dx, dy = columns - column, rows - row
        distance = np.hypot(dx, dy) + 1e-6
        inside = np.clip(mark - distance + 0.5, 0, 1)
        surface.slope_x -= (0.8 * inside * dx / distance).astype(np.float32)
        surface.slope_y -= (0.8 * inside * dy / distance).astype(np.float32)
        surface.occlusion *= (1 - 0.45 * inside).astype(np.float32)
    return at, compose(surface, canvas.belt, canvas.look, at)


def contamination(rng: np.random.Generator, severity: float, canvas: Canvas) -> Patch:
    """Something that lies on the part: a chip, curled swarf, a fibre, or dirt."""
    kind = (_chip, _swarf, _fibre, _dirt)[int(rng.integers(4))]
    middle = _spot(rng, canvas, 8)
    at, cover, colour, lift = kind(rng, severity, middle)
    return at, _lay_on(canvas, at, cover, colour, lift)


Lying = tuple[Window, FloatMap, FloatMap, float]  # window, cover, colour [h, w, 3], lift in px


def _lay_on(canvas: Canvas, at: Window, cover: FloatMap, colour: FloatMap, lift: float) -> FloatMap:
    """Puts something opaque on the part, with the shadow that its lift gives it."""
    key = np.array(canvas.look.light) / np.hypot(*canvas.look.light)
    move = np.array([[1, 0, -lift * key[0]], [0, 1, -lift * key[1]]])
    shadow = cv2.warpAffine(cover, move, cover.shape[::-1], flags=cv2.INTER_LINEAR)
    shadow = cv2.GaussianBlur(shadow, (0, 0), 0.6 + 0.35 * lift) * canvas.surface.metal[at]
    ground = canvas.scene[at] * (1 - 0.62 * shadow[..., None])
    return np.asarray(ground + cover[..., None] * (colour - ground), np.float32)


def _flat_colour(shape: tuple[int, ...], rgb: tuple[float, float, float]) -> FloatMap:
    return np.broadcast_to(np.array(rgb, np.float32), (*shape, 3)).copy()


def _chip(rng: np.random.Generator, severity: float, middle: Points) -> Lying:
    radius = 4.0 + 5.0 * severity + rng.uniform(0, 1.5)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    reach = radius * rng.uniform(0.55, 1.15, 7) * np.where(np.arange(7) % 2, 1.0, 0.85)
    corners = middle + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    at = _window(np.concatenate([corners, middle]), 10)
    height, breadth = at[0].stop - at[0].start, at[1].stop - at[1].start
    fine = np.zeros((height * _FINE, breadth * _FINE, 2), np.uint8)
    local = (corners - [at[1].start, at[0].start] + 0.5) * _FINE
    axis = (middle[0] - [at[1].start, at[0].start] + 0.5) * _FINE
    for k in range(7):  # facets, each with its own brightness
        facet = np.rint([axis, local[k], local[(k + 1) % 7]]).astype(np.int32)
        level = float(rng.choice([rng.uniform(10, 50), rng.uniform(120, 255)]))
        cv2.fillPoly(fine, [facet], (255, level))
    small = cv2.resize(fine, (breadth, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    cover = np.ascontiguousarray(small[..., 0] / 255, np.float32)
    shine = small[..., 1] / np.maximum(small[..., 0], 1) * 0.95
    tint = np.array([1.0, 0.97, 0.90], np.float32)
    return at, cover, np.asarray(shine[..., None] * tint, np.float32), 2.0 + 2.0 * severity


def _swarf(rng: np.random.Generator, severity: float, middle: Points) -> Lying:
    turns = 2.0 + 3.0 * severity + rng.uniform(0, 1)
    t = np.linspace(0, 2 * np.pi * turns, int(40 * turns))
    loop = 3.6 + 2.4 * severity
    pitch = rng.uniform(0.9, 1.3)
    x = pitch * (t - t.mean()) + loop * np.cos(t)
    y = loop * rng.uniform(0.6, 0.9) * np.sin(t) + 0.012 * (t - t.mean()) ** 2 * rng.uniform(-1, 1)
    turn = rng.uniform(0, 2 * np.pi)
    points = middle + np.stack(
        [np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], axis=1
    )
    at = _window(points, 10)
    width = 1.6 + 0.8 * severity
    cover = _draw_curve(points, np.ones(len(t)), width, at)
    facing = 0.5 + 0.5 * np.sin(t + rng.uniform(0, 2 * np.pi))  # the ribbon turns over
    level = _draw_curve(points, 0.06 + 0.94 * facing**2, width, at)
    shine = level / np.maximum(cover, 1e-3)
    tint = np.array([1.0, 0.95, 0.86], np.float32)
    return at, cover, np.asarray(shine[..., None] * tint, np.float32), 2.5


def _fibre(rng: np.random.Generator, severity: float, middle: Points) -> Lying:
    length = 34 + 46 * severity
    points = _bent_line(rng, middle, rng.uniform(0, np.pi), length, rng.uniform(-0.6, 0.6))
    t = np.linspace(0, 2 * np.pi, len(points))
    points += rng.uniform(1.0, 4.0) * np.sin(rng.uniform(0.7, 1.8) * t + rng.uniform(0, 6))[:, None]
    at = _window(points, 8)
    cover = _draw_curve(points, np.ones(len(points)), 1.2 + 0.6 * severity, at)
    dyes = ((0.02, 0.02, 0.025), (0.02, 0.04, 0.16), (0.10, 0.05, 0.025), (0.22, 0.02, 0.02))
    colour = _flat_colour(cover.shape, dyes[int(rng.integers(len(dyes)))])
    return at, cover, colour, 1.2


def _dirt(rng: np.random.Generator, severity: float, middle: Points) -> Lying:
    spread = 4.0 + 6.0 * severity
    grains = int(14 + 22 * severity)
    places = middle + rng.normal(0, spread, (grains, 2)).clip(-2.2 * spread, 2.2 * spread)
    sizes = rng.gamma(2.5, 0.45 + 0.25 * severity, grains).clip(0.5, 3.5)
    at = _window(places, 8)
    height, breadth = at[0].stop - at[0].start, at[1].stop - at[1].start
    fine = np.zeros((height * _FINE, breadth * _FINE), np.uint8)
    for place, size in zip(places, sizes, strict=True):
        local = np.rint((place - [at[1].start, at[0].start] + 0.5) * _FINE).astype(int)
        axes = (max(1, round(size * _FINE)), max(1, round(size * _FINE * rng.uniform(0.5, 1.0))))
        cv2.ellipse(fine, local.tolist(), axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_8)
    small = cv2.resize(fine, (breadth, height), interpolation=cv2.INTER_AREA)
    cover = np.asarray(small.astype(np.float32) / 255, np.float32)
    colour = _flat_colour(cover.shape, (0.055, 0.042, 0.030))
    colour *= rng.uniform(0.5, 1.6, cover.shape)[..., None].astype(np.float32)
    return at, cover, colour, 0.8


PAINTERS: dict[str, Painter] = {
    "scratch": scratch,
    "dent": dent,
    "stain": stain,
    "missing_hole": missing_hole,
    "contamination": contamination,
}
