"""Pictures of flanges on a conveyor, good or with one defect, and the truth about each.

Every picture is a pure function of (seed, index, defect): parts can be rendered alone and in
any order. A good and a defective rendering of the same index show the same part with the same
sensor noise, and differ only where the defect is.

`python -m metal_edge.demo.render OUT.png` writes a contact sheet.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.demo.defect_painters import Canvas
from metal_edge.demo.defects import DEFECTS, apply_defect
from metal_edge.demo.render_fields import FRAME_SIZE
from metal_edge.demo.render_optics import develop, expose
from metal_edge.demo.render_scene import (
    LineSetup,
    belt_luminance,
    compose,
    draw_look,
    pose_surface,
)
from metal_edge.domain import Image
from metal_edge.errors import DataError, OutputError

__all__ = [
    "DEFECTS",
    "FRAME_SIZE",
    "LINE_INDEXES",
    "LineSetup",
    "Part",
    "PartSequence",
    "contact_sheet",
    "render_part",
]

INDEX_LIMIT = 2**32  # one word of a SeedSequence key
LINE_INDEXES = range(2**31)  # parts that run on a line; data sets use the indexes above
_PART_ID = re.compile(r"P-([0-9]{6,})")


class _Stream(IntEnum):
    """Independent random streams of one part."""

    LOOK = 0
    NOISE = 1
    DEFECT = 2
    TRUTH = 3


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One picture and the truth about it.

    Attributes:
        image: uint8 [384, 384, 3] RGB.
        mask: uint8 [384, 384], 255 where the defect altered the picture, 0 elsewhere.
        defect: one of DEFECTS, or None for a good part.
    """

    image: Image
    mask: NDArray[np.uint8]
    defect: str | None
    index: int


def _rng(seed: int, stream: _Stream, index: int, kind: int = 0) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed {seed} is negative")
    if not 0 <= index < INDEX_LIMIT:
        raise ValueError(f"part index {index} is outside 0..{INDEX_LIMIT - 1}")
    key = (int(stream), index, kind)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def render_part(
    seed: int, index: int, defect: str | None = None, *, setup: LineSetup | None = None
) -> Part:
    """Renders part `index` of the world `seed`.

    Raises:
        ValueError: a negative seed, an index outside 0..2**32-1, or an unknown defect.
    """
    look = draw_look(_rng(seed, _Stream.LOOK, index), setup or LineSetup())
    surface = pose_surface(look)
    belt = belt_luminance(surface, look)
    scene = compose(surface, belt, look)
    light = expose(scene, look)
    mask = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
    if defect is not None:
        if defect not in DEFECTS:
            raise ValueError(f"defect {defect!r} is none of {', '.join(DEFECTS)}")
        rng = _rng(seed, _Stream.DEFECT, index, DEFECTS.index(defect))
        found = apply_defect(defect, rng, Canvas(surface, look, belt, scene), light)
        light, mask = found.light, found.mask
    return Part(develop(light, _rng(seed, _Stream.NOISE, index)), mask, defect, index)


class PartSequence:
    """What a running line brings: part after part, and the truth about each.

    Args:
        seed: the world; the same seed brings the same parts for ever.
        defect_rate: share of defective parts, 0..1, drawn part by part.
        explicit: what certain indexes are, whatever the rate says.
    """

    def __init__(
        self,
        seed: int,
        defect_rate: float = 0.0,
        explicit: Mapping[int, str | None] | None = None,
    ) -> None:
        if not 0.0 <= defect_rate <= 1.0:
            raise ValueError(f"defect_rate {defect_rate} is outside 0..1")
        self.seed = seed
        self.defect_rate = defect_rate
        self.explicit = dict(explicit or {})
        for index, defect in self.explicit.items():
            self._check(index)
            if defect is not None and defect not in DEFECTS:
                raise ValueError(f"defect {defect!r} is none of {', '.join(DEFECTS)}")

    def defect_of(self, index: int) -> str | None:
        """The truth: the defect of part `index`, None when it is good."""
        self._check(index)
        if index in self.explicit:
            return self.explicit[index]
        rng = _rng(self.seed, _Stream.TRUTH, index)
        if rng.uniform() >= self.defect_rate:
            return None
        return DEFECTS[int(rng.integers(len(DEFECTS)))]

    def render(self, index: int) -> Part:
        """The picture of part `index`."""
        return render_part(self.seed, index, self.defect_of(index))

    @staticmethod
    def part_id(index: int) -> str:
        """The name that the PLC gives part `index`: `P-000123`."""
        PartSequence._check(index)
        return f"P-{index:06d}"

    @staticmethod
    def index_of(part_id: str) -> int:
        """The inverse of `part_id`.

        Raises:
            DataError: no name that `part_id` would give.
        """
        match = _PART_ID.fullmatch(part_id)
        index = int(match[1]) if match else -1
        if index not in LINE_INDEXES or PartSequence.part_id(index) != part_id:
            raise DataError(f"part id {part_id!r} is not of this line", "use ids like P-000123")
        return index

    @staticmethod
    def _check(index: int) -> None:
        if index not in LINE_INDEXES:
            raise ValueError(f"part index {index} is outside 0..{LINE_INDEXES.stop - 1}")


def contact_sheet(seed: int, path: Path, columns: int = 5) -> None:
    """Writes one PNG: a row of good parts, then a row per defect, half size.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = []
    for row, defect in enumerate((None, *DEFECTS)):
        parts = [render_part(seed, row * columns + k, defect).image for k in range(columns)]
        strip = np.concatenate(parts, axis=1)
        rows.append(cv2.resize(strip, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    sheet = cv2.cvtColor(np.concatenate(rows, axis=0), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", sheet)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error.strerror or error})", "choose another place"
        ) from error


def main(arguments: list[str]) -> int:
    """`python -m metal_edge.demo.render OUT.png [SEED]`."""
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python -m metal_edge.demo.render OUT.png [SEED]\n")
        return 64
    contact_sheet(int(arguments[1]) if len(arguments) == 2 else 7, Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
