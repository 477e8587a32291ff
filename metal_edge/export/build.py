"""The last arrow of the build flow: a verified model file becomes a bundle on disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

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
from metal_edge.domain import Preprocess
from metal_edge.export.parity import GoldenCandidate
from metal_edge.files import write_folder
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
    golden: Sequence[GoldenCandidate]  # with the scores that they must give; at least one
    provenance: dict[str, Any]


def golden_tolerance(threshold: float) -> float:
    """How far a golden score may be off; an image nearer to the threshold can prove nothing."""
    return GOLDEN_RELATIVE_TOLERANCE * abs(threshold)


def write_bundle(destination: Path, parts: BundleParts) -> Bundle:
    """Writes the bundle, opens it again and runs its golden images before it is moved in place.

    Raises:
        BundleError: the written bundle does not reproduce itself.
        OutputError: the place cannot be written; an old bundle there stays.
    """

    def fill(folder: Path) -> None:
        shutil.copyfile(parts.model_file, folder / MODEL)
        (folder / THRESHOLDS).write_text(to_json(parts.thresholds), encoding="utf-8")
        _write_golden(folder, parts)
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


def _write_golden(folder: Path, parts: BundleParts) -> None:
    (folder / GOLDEN).parent.mkdir()
    entries = []
    for index, candidate in enumerate(parts.golden):
        name = f"golden/{index:03d}.png"
        # Not imwrite, which keeps to itself why it could not write.
        _, png = cv2.imencode(".png", np.ascontiguousarray(candidate.image[..., ::-1]))
        (folder / name).write_bytes(png.tobytes())
        entries.append(GoldenImage(file=name, score=candidate.converted, good=candidate.good))
    golden = Golden(tolerance=golden_tolerance(parts.thresholds.score), images=tuple(entries))
    (folder / GOLDEN).write_text(to_json(golden), encoding="utf-8")
