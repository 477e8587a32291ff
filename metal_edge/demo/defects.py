"""Puts one visible defect on a good part, and says exactly which pixels it altered.

Three laws, whatever the painter does: the mask holds the pixels whose noise-free display
level changed by `MASK_LEVELS` or more; outside `SPILL` pixels around the mask nothing changes
at all; and at 128 x 128, where the model looks, the change reaches `VISIBLE_LEVELS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.demo.defect_painters import PAINTERS, Canvas, Patch
from metal_edge.demo.render_fields import FRAME_SIZE
from metal_edge.demo.render_optics import BLUR_REACH, display, expose
from metal_edge.domain import FloatMap

DEFECTS: tuple[str, ...] = ("scratch", "dent", "stain", "missing_hole", "contamination")
MASK_LEVELS = 4.0  # of 255; sensor noise has a standard deviation of about 2
MIN_MASK_PIXELS = 40
SPILL = 3  # pixels around the mask that may keep a fainter change
# Mean change of the strongest pixels at model resolution, in levels of 255. A dent adds light
# and shade in equal parts, as the turned face itself does, so it takes more of them to see.
VISIBLE_LEVELS = {
    "scratch": 15.0,
    "dent": 30.0,
    "stain": 15.0,
    "missing_hole": 15.0,
    "contamination": 15.0,
}
_STRONGEST = 6
_MODEL_STEP = FRAME_SIZE // 128
_SPECK = 6  # pixels: smaller islands of change are dropped, from mask and picture alike
_ATTEMPTS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Defective:
    """Light on the sensor, float32 [384, 384, 3], and the altered pixels, uint8 [384, 384]."""

    light: FloatMap
    mask: NDArray[np.uint8]

    @property
    def pixels(self) -> int:
        """How many pixels the defect altered."""
        return int(np.count_nonzero(self.mask))


def apply_defect(kind: str, rng: np.random.Generator, canvas: Canvas, light: FloatMap) -> Defective:
    """Paints a defect of random severity on the part that exposed to `light`.

    A draw that would hide (a scratch along the marks, a stain in a shadow) is drawn again,
    each time a little graver.

    Raises:
        ValueError: `kind` is none of DEFECTS.
    """
    if kind not in PAINTERS:
        raise ValueError(f"defect {kind!r} is none of {', '.join(DEFECTS)}")
    for attempt in range(_ATTEMPTS):
        floor = attempt / (_ATTEMPTS - 1)
        severity = floor + (1 - floor) * float(rng.uniform())
        patch = PAINTERS[kind](rng, severity, canvas)
        result, visibility = _develop_patch(patch, canvas, light)
        if result.pixels >= MIN_MASK_PIXELS and visibility >= VISIBLE_LEVELS[kind]:
            return result
    raise RuntimeError(f"{kind} stayed invisible in {_ATTEMPTS} draws")


def _develop_patch(patch: Patch, canvas: Canvas, light: FloatMap) -> tuple[Defective, float]:
    """The whole frame with the patch in it, its mask, and how far it can be seen."""
    (rows, columns), changed = patch
    inner = _grow(rows), _grow(columns)  # all that the lens may spread the change to
    outer = _pad(inner[0]), _pad(inner[1])
    scene = canvas.scene[outer].copy()
    scene[
        rows.start - outer[0].start : rows.stop - outer[0].start,
        columns.start - outer[1].start : columns.stop - outer[1].start,
    ] = changed
    exposed = expose(scene, canvas.look, outer)[
        inner[0].start - outer[0].start : inner[0].stop - outer[0].start,
        inner[1].start - outer[1].start : inner[1].stop - outer[1].start,
    ]
    before = display(light[inner])
    altered = _without_specks(np.abs(display(exposed) - before).max(axis=-1) >= MASK_LEVELS)
    reach = cv2.dilate(altered, np.ones((2 * SPILL + 1, 2 * SPILL + 1), np.uint8)) > 0
    result = light.copy()
    result[inner][reach] = exposed[reach]
    mask = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
    mask[inner] = altered * np.uint8(255)
    return Defective(result, mask), _visibility(display(result[inner]) - before)


def _grow(span: slice) -> slice:
    """Room for the lens, on the grid of the model's pixels."""
    start = max(0, span.start - BLUR_REACH) // _MODEL_STEP * _MODEL_STEP
    stop = -(-min(FRAME_SIZE, span.stop + BLUR_REACH) // _MODEL_STEP) * _MODEL_STEP
    return slice(start, stop)


def _pad(span: slice) -> slice:
    return slice(max(0, span.start - BLUR_REACH), min(FRAME_SIZE, span.stop + BLUR_REACH))


def _without_specks(altered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(altered.astype(np.uint8))
    keep = stats[:count, cv2.CC_STAT_AREA] >= _SPECK
    keep[0] = False  # the background
    return np.asarray(keep[labels], np.uint8)


def _visibility(change: FloatMap) -> float:
    """Mean change of the strongest model pixels, in levels of 255; `change` is [h, w, 3]."""
    height, width = change.shape[0] // _MODEL_STEP, change.shape[1] // _MODEL_STEP
    small = np.abs(cv2.resize(change, (width, height), interpolation=cv2.INTER_AREA)).max(axis=-1)
    strongest = np.sort(small, axis=None)[-_STRONGEST:]
    return float(strongest.mean())
