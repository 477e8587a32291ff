"""One picture that shows what the model sees: image, truth, anomaly map, overlay and verdict.

Every heat colour is on the scale of the threshold, so tiles compare with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from metal_edge.domain import FloatMap, Image, Verdict
from metal_edge.evaluation.evaluate import ImageRecord, View, resize_map
from metal_edge.imaging import heatmap, overlay

Color = tuple[int, int, int]

TILE = 232
COLUMNS = ("Image", "Ground truth", "Anomaly map", "Overlay")
_MARGIN, _GAP, _CAPTION = 36, 12, 250
_MIN_TILE_HEIGHT = 132  # what the caption needs
_HEAD, _SECTION, _FOOT = 118, 58, 84
_WIDTH = 2 * _MARGIN + _CAPTION + len(COLUMNS) * (TILE + _GAP)

_PAPER, _INK, _SOFT, _LINE, _EMPTY = (
    (255, 255, 255),
    (28, 33, 40),
    (104, 112, 122),
    (222, 226, 231),
    (243, 245, 247),
)
_GREEN, _RED, _AMBER, _CYAN = (26, 127, 75), (196, 43, 43), (176, 113, 0), (0, 200, 210)
_PLAIN_DASHES = str.maketrans("–—", "--")  # not in the font
_CHIP = {Verdict.PASS: _GREEN, Verdict.REJECT: _RED, Verdict.UNKNOWN: _AMBER}


@dataclass(frozen=True, slots=True)
class Scale:
    """What the heat colours are relative to: the threshold, or a named stand-in for it."""

    value: float
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One image at the size it is drawn, with its map.

    Attributes:
        image: uint8 [H, W, 3], the longer side TILE pixels.
        truth: bool [H, W]; None where a defect has no mask.
        anomaly_map: float32 [h, w]; None where it was not finite.
    """

    record: ImageRecord
    image: Image
    truth: NDArray[np.bool_] | None
    anomaly_map: FloatMap | None


def make_row(record: ImageRecord, view: View, anomaly_map: FloatMap) -> Row:
    """Shrinks a view to drawing size, so that a sheet of large pictures stays small in memory."""
    image = _fit(view.image, TILE, TILE)
    truth = view.truth
    if truth is not None:
        size = (image.shape[1], image.shape[0])
        share = cv2.resize(truth.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        truth = share > 0  # a defect smaller than a pixel of the sheet stays visible
    finite = bool(np.isfinite(anomaly_map).all())
    return Row(record, image, truth, anomaly_map if finite else None)


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """Rows under one heading, with a line that says what they are."""

    title: str
    note: str
    rows: Sequence[Row]


def draw_gallery(title: str, subtitle: str, sections: Sequence[Section], scale: Scale) -> Image:
    """Draws the sheet.

    Args:
        title, subtitle: the two lines at the top.
        sections: at least one row in all.
        scale: of the heat; its value must be finite and above 0.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    rows = [row for section in sections for row in section.rows]
    tile_height = _tile_height(rows)
    height = _HEAD + _FOOT + len(sections) * _SECTION + len(rows) * (tile_height + _GAP)
    sheet = PIL.Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN, 30), title, 26, color=_INK, width=_WIDTH - 2 * _MARGIN)
    _text(draw, (_MARGIN, 68), subtitle, 15, color=_SOFT, width=_WIDTH - 2 * _MARGIN)
    y = _HEAD
    for section in sections:
        _heading(draw, y, section)
        y += _SECTION
        for row in section.rows:
            _draw_row(sheet, y, row, tile_height, scale)
            y += tile_height + _GAP
    _legend(sheet, y + 18, scale)
    return np.asarray(sheet, dtype=np.uint8)


def _tile_height(rows: Sequence[Row]) -> int:
    """Tiles take the images' shape, so that wide images leave no empty bands."""
    tallest = max(row.image.shape[0] / row.image.shape[1] for row in rows)
    return int(min(max(TILE * tallest, _MIN_TILE_HEIGHT), TILE))


def _heading(draw: ImageDraw.ImageDraw, y: int, section: Section) -> None:
    draw.line((_MARGIN, y, _WIDTH - _MARGIN, y), _LINE)
    _text(draw, (_MARGIN, y + 10), section.title, 17, color=_INK, width=_CAPTION - 12)
    _text(draw, (_MARGIN, y + 33), section.note, 13, color=_SOFT, width=_CAPTION - 12)
    for index, name in enumerate(COLUMNS):
        _text(draw, (_column_x(index), y + 33), name, 13, color=_SOFT, width=TILE)


def _draw_row(sheet: PIL.Image.Image, y: int, row: Row, height: int, scale: Scale) -> None:
    draw = ImageDraw.Draw(sheet)
    _caption(draw, y, row.record, scale)
    for index, (picture, words) in enumerate(_tiles(row, scale)):
        x = _column_x(index)
        draw.rectangle((x, y, x + TILE - 1, y + height - 1), _EMPTY)
        if picture is None:
            draw.text((x + TILE / 2, y + height / 2), words, _SOFT, _font(14), anchor="mm")
            continue
        fitted = _fit(picture, TILE, height)
        rows, columns = fitted.shape[:2]
        at = (x + (TILE - columns) // 2, y + (height - rows) // 2)
        sheet.paste(PIL.Image.fromarray(fitted), at)
        draw.rectangle((x, y, x + TILE - 1, y + height - 1), outline=_LINE)


def _tiles(row: Row, scale: Scale) -> list[tuple[Image | None, str]]:
    """The four pictures, or the words that stand in for one."""
    image, truth = row.image, row.truth
    if truth is None:
        truth_tile: tuple[Image | None, str] = (None, "no mask")
    elif not truth.any():
        truth_tile = (None, "no defect")
    else:
        truth_tile = (truth[..., None].repeat(3, axis=2).astype(np.uint8) * np.uint8(255), "")
    if row.anomaly_map is None:
        return [(image, ""), truth_tile, (None, "not finite"), (None, "not finite")]
    smooth = resize_map(row.anomaly_map, image.shape)
    blend = overlay(image, smooth, scale.value, truth)
    return [(image, ""), truth_tile, (heatmap(smooth, scale.value), ""), (blend, "")]


def _caption(draw: ImageDraw.ImageDraw, y: int, record: ImageRecord, scale: Scale) -> None:
    width = _CAPTION - 20
    _text(draw, (_MARGIN, y + 2), record.sample.label, 17, color=_INK, width=width)
    _text(draw, (_MARGIN, y + 26), record.sample.path.name, 13, color=_SOFT, width=width)
    score = "not finite" if record.score is None else f"{record.score:.4g}"
    _text(draw, (_MARGIN, y + 50), f"score {score}", 15, color=_INK, width=width)
    if record.score is not None:
        ratio = f"{record.score / scale.value:.2f} x {scale.name}"
        _text(draw, (_MARGIN, y + 71), ratio, 13, color=_SOFT, width=width)
    if record.verdict is not None:
        chip = _chip(draw, (_MARGIN, y + 97), record.verdict.value.upper(), _CHIP[record.verdict])
        words, color = _judgement(record)
        _text(draw, (chip + 10, y + 100), words, 14, color=color, width=_MARGIN + width - chip)


def _judgement(record: ImageRecord) -> tuple[str, Color]:
    if record.missed:
        return "missed defect", _RED
    if record.false_reject:
        return "false reject", _RED
    if record.verdict is Verdict.UNKNOWN:
        return "no score", _AMBER
    return "correct", _SOFT


def _chip(draw: ImageDraw.ImageDraw, at: tuple[int, int], words: str, color: Color) -> int:
    """A filled label; returns its right edge."""
    font = _font(13)
    right = at[0] + round(font.getlength(words)) + 18
    draw.rounded_rectangle((*at, right, at[1] + 23), 4, color)
    draw.text(((at[0] + right) / 2, at[1] + 12), words, _PAPER, font, anchor="mm")
    return right


def _legend(sheet: PIL.Image.Image, y: int, scale: Scale) -> None:
    """The colour bar, made by the very function that colours the maps."""
    draw = ImageDraw.Draw(sheet)
    x, width, height = _column_x(0), 2 * TILE + _GAP, 14
    ramp = np.linspace(0, 2 * scale.value, width, dtype=np.float32)[None].repeat(height, 0)
    sheet.paste(PIL.Image.fromarray(heatmap(ramp, scale.value)), (x, y))
    draw.line((x + width / 2, y - 3, x + width / 2, y + height + 2), _CYAN, 2)
    for place, words, anchor in (
        (x, "0", "la"),
        (x + width / 2, f"{scale.name} {scale.value:.4g}", "ma"),
        (x + width, "2 x and above", "ra"),
    ):
        draw.text((place, y + height + 6), words, _SOFT, _font(13), anchor=anchor)
    _text(draw, (_MARGIN, y - 2), "Anomaly map colours", 13, color=_SOFT, width=_CAPTION)
    right = _column_x(2)
    _swatch(draw, (right, y + 1), _CYAN, f"map at or above {scale.name}")
    _swatch(draw, (right, y + 23), _PAPER, "ground truth outline")


def _swatch(draw: ImageDraw.ImageDraw, at: tuple[int, int], color: Color, words: str) -> None:
    x, y = at
    draw.rectangle((x, y, x + 24, y + 12), (70, 70, 76))
    draw.line((x + 4, y + 6, x + 20, y + 6), color, 2)
    _text(draw, (x + 34, y - 3), words, 13, color=_SOFT, width=2 * TILE - 40)


def _column_x(index: int) -> int:
    return _MARGIN + _CAPTION + index * (TILE + _GAP)


def _fit(image: Image, width: int, height: int) -> Image:
    """Scaled to fit, area-averaged when it shrinks, keeping the aspect ratio."""
    rows, columns = image.shape[:2]
    factor = min(width / columns, height / rows)
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    words: str,
    size: int,
    *,
    color: Color,
    width: float,
) -> None:
    """One line, cut with an ellipsis where it would not fit."""
    font = _font(size)
    words = words.translate(_PLAIN_DASHES)
    shown = words = "".join(c if _has_glyph(c) else "?" for c in words)
    while font.getlength(shown) > width and len(words) > 1:
        words = words[:-1]
        shown = words + "..."
    draw.text(at, shown, color, font)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("Pillow was built without FreeType")
    return font


@cache
def _has_glyph(character: str) -> bool:
    """Whether the font draws it; the one inside Pillow covers Latin scripts only."""
    font = _font(16)
    return character == " " or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))
