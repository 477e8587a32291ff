"""The last arrow of the build flow: a verified model file becomes a bundle on disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.bundle import (
    GOLDEN,
    MODEL,
    THRESHOLDS,
    Bundle,
    Golden,
    GoldenImage,
    Manifest,
    Thresholds,
    describe_files,
    to_json,
    write_manifest,
)
from metal_edge.domain import Image, Preprocess
from metal_edge.errors import BundleError
from metal_edge.files import write_folder
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import check_golden, load_runner

# Another CPU sums in another order; INT8 rounds some of that up to a whole step.
GOLDEN_RELATIVE_TOLERANCE = 0.02


@dataclass(frozen=True)
class BundleParts:
    """Everything a bundle is made of, still in memory or in working files."""

    name: str
    version: str
    created_utc: str
    model_file: Path
    model: dict[str, Any]
    precision: str
    preprocess: Preprocess
    thresholds: Thresholds
    golden_good: NDArray[np.uint8]  # [N, S, S, 3]
    golden_bad: NDArray[np.uint8]  # [M, S, S, 3], may be empty
    provenance: dict[str, Any]


def write_bundle(destination: Path, parts: BundleParts, runner: Runner) -> Bundle:
    """Writes the bundle, opens it again and runs its golden images before it is moved in place.

    Raises:
        BundleError: the written bundle does not reproduce itself.
        OutputError: the place cannot be written; an old bundle there stays.
    """

    def fill(folder: Path) -> None:
        shutil.copyfile(parts.model_file, folder / MODEL)
        (folder / THRESHOLDS).write_text(to_json(parts.thresholds), encoding="utf-8")
        _write_golden(folder, parts, runner)
        manifest = Manifest(
            name=parts.name,
            version=parts.version,
            created_utc=parts.created_utc,
            model=parts.model,
            precision=parts.precision,  # type: ignore[arg-type]  # validated by pydantic
            backend="onnxruntime",
            preprocess=parts.preprocess,
            provenance=parts.provenance,
            files=describe_files(folder),
        )
        write_manifest(folder, manifest)
        written = Bundle.open(folder)
        with load_runner(written) as again:
            check_golden(written, again)

    write_folder(destination, fill)
    return Bundle.open(destination)


def _write_golden(folder: Path, parts: BundleParts, runner: Runner) -> None:
    (folder / GOLDEN).parent.mkdir()
    entries = []
    images: Sequence[tuple[Image, bool]] = [
        *((image, True) for image in parts.golden_good),
        *((image, False) for image in parts.golden_bad),
    ]
    for index, (image, good) in enumerate(images):
        name = f"golden/{index:03d}.png"
        if not cv2.imwrite(str(folder / name), np.ascontiguousarray(image[..., ::-1])):
            raise BundleError(f"cannot write {name}", "free space there")
        score = runner.run(image[None])[0].score
        entries.append(GoldenImage(file=name, score=score, good=good))
    tolerance = GOLDEN_RELATIVE_TOLERANCE * parts.thresholds.score
    entries = [e for e in entries if abs(e.score - parts.thresholds.score) > tolerance] or entries
    golden = Golden(tolerance=tolerance, images=tuple(entries))
    kept = {entry.file for entry in entries}
    for file in (folder / "golden").glob("*.png"):
        if f"golden/{file.name}" not in kept:
            file.unlink()
    (folder / GOLDEN).write_text(to_json(golden), encoding="utf-8")
