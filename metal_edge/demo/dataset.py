"""A data set of rendered parts in MVTec AD's layout, for `train`, `calibrate` and `evaluate`.

Layout::

    root/train/good/000.png
    root/test/good/000.png
    root/test/<defect>/000.png
    root/ground_truth/<defect>/000_mask.png   255 where the picture was altered

Part indexes start above LINE_INDEXES, in one block per folder: no picture is ever shared
between folders or with a running line of the same seed, and a folder's pictures do not depend
on how many the other folders hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.demo.render import DEFECTS, LINE_INDEXES, render_part
from metal_edge.errors import OutputError
from metal_edge.files import write_folder

_BLOCK = 2**24  # part indexes per folder
_PNG_LEVEL = 1  # noise does not compress; speed counts


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One picture of the data set, before it is rendered.

    Attributes:
        path: relative to the root.
        mask_path: relative to the root; None for good parts.
        index: the part index to render.
    """

    path: PurePosixPath
    mask_path: PurePosixPath | None
    index: int
    defect: str | None


def plan_dataset(train_good: int, test_good: int, per_defect: int) -> list[PlannedImage]:
    """Every picture of the data set, in writing order.

    Raises:
        ValueError: a count is negative or above 2**24.
    """
    folders: list[tuple[str, str | None, int]] = [
        ("train/good", None, train_good),
        ("test/good", None, test_good),
        *((f"test/{defect}", defect, per_defect) for defect in DEFECTS),
    ]
    plan = []
    for block, (folder, defect, count) in enumerate(folders):
        if not 0 <= count <= _BLOCK:
            raise ValueError(f"{folder}: {count} images is outside 0..{_BLOCK}")
        first = LINE_INDEXES.stop + block * _BLOCK
        for number in range(count):
            mask = f"ground_truth/{defect}/{number:03d}_mask.png" if defect else None
            plan.append(
                PlannedImage(
                    PurePosixPath(f"{folder}/{number:03d}.png"),
                    PurePosixPath(mask) if mask else None,
                    first + number,
                    defect,
                )
            )
    return plan


def write_dataset(  # noqa: PLR0917  (a published signature)
    root: Path,
    seed: int,
    train_good: int,
    test_good: int,
    per_defect: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Renders a data set into `root`, which appears complete or not at all.

    Args:
        per_defect: test images (each with its mask) for every one of DEFECTS.
        progress: called with (images written, images in all) after each image.

    Raises:
        OutputError: `root` exists and is not an empty folder, or cannot be written.
        ValueError: a count or the seed is negative.
    """
    plan = plan_dataset(train_good, test_good, per_defect)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise OutputError(f"{root} already exists", "remove it or choose another place")

    def fill(staging: Path) -> None:
        for done, image in enumerate(plan, start=1):
            part = render_part(seed, image.index, image.defect)
            _write_png(staging / image.path, cv2.cvtColor(part.image, cv2.COLOR_RGB2BGR))
            if image.mask_path is not None:
                _write_png(staging / image.mask_path, part.mask)
            if progress is not None:
                progress(done, len(plan))

    write_folder(root, fill)


def _write_png(path: Path, pixels: NDArray[np.uint8] | cv2.typing.MatLike) -> None:
    ok, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    if not ok:
        raise OutputError(f"cannot encode {path.name} as PNG", "check the OpenCV installation")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
