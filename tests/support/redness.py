"""A runner whose numbers can be worked out by hand, and MVTec-style files to feed it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from metal_edge.domain import Inspection
from metal_edge.imaging import write_png
from metal_edge.runtime.base import check_images

SIZE = 32
Box = tuple[slice, slice]
BOX = (slice(8, 24), slice(16, 40))


class RednessRunner:
    """Map: the red channel / 255 at half resolution; score: its maximum. Keeps batch sizes."""

    def __init__(self, size: int = SIZE) -> None:
        self.input_shape = (size, size, 3)
        self.batches: list[int] = []

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        check_images(images, self.input_shape)
        self.batches.append(len(images))
        maps = images[:, ::2, ::2, 0].astype(np.float32) / 255
        return [Inspection(m, float(m.max())) for m in maps]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def write_sample(
    root: Path,
    label: str,
    name: str,
    redness: int,
    *,
    truth: Sequence[Box] | None,
    size: tuple[int, int] = (64, 64),
) -> None:
    """A grey part with boxes of `redness` in the red channel; None paints BOX, without a mask."""
    image = np.full((*size, 3), 40, np.uint8)
    mask = np.zeros((*size, 3), np.uint8)
    for box in truth or [BOX]:
        image[(*box, 0)] = redness
        mask[box] = 255
    write_png(root / "test" / label / f"{name}.png", image)
    if truth:
        write_png(root / "ground_truth" / label / f"{name}_mask.png", mask)
