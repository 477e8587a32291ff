"""Writing a bundle: whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.cli import listing
from support.small_disk import small_disk
from support.tiny_bundle import SIZE, build_bundle, write_model

from metal_edge.bundle import Bundle, Thresholds
from metal_edge.domain import Preprocess
from metal_edge.errors import OutputError
from metal_edge.export.build import BundleParts, write_bundle
from metal_edge.export.parity import GoldenCandidate
from metal_edge.runtime.load import read_golden_image
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


def parts_of(folder: Path, golden: int) -> BundleParts:
    """A tiny model and golden pictures of noise, about 3 kB each."""
    model = folder / "model.onnx"
    write_model(model)
    images = np.random.default_rng(0).integers(0, 256, (golden, SIZE, SIZE, 3), dtype=np.uint8)
    with OnnxRuntimeRunner(model) as runner:
        scores = [runner.run(image[None])[0].score for image in images]
    return BundleParts(
        name="tiny",
        version="0",
        created_utc="2026-01-01T00:00:00+00:00",
        model_file=model,
        model={},
        precision="fp32",
        preprocess=Preprocess(None, None, SIZE, SIZE),
        thresholds=Thresholds(score=0.1, false_reject_rate=0.01, calibration_images=99),
        golden=[
            GoldenCandidate(image, False, score, score, "noise")
            for image, score in zip(images, scores, strict=True)
        ],
        provenance={},
    )


def test_golden_images_are_stored_exactly(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, golden=2)
    bundle = write_bundle(tmp_path / "bundle", parts)
    for stored, given in zip(bundle.golden.images, parts.golden, strict=True):
        assert stored.score == given.converted
        assert np.array_equal(read_golden_image(bundle, stored.file), given.image)


def test_no_space_for_the_golden_images(tmp_path: Path) -> None:
    """The model still fits; the old bundle stays."""
    parts = parts_of(tmp_path, golden=20)
    with small_disk(tmp_path / "disk", "96k") as place:
        old = build_bundle(place / "old")
        before = listing(place)
        with pytest.raises(OutputError, match=r"cannot write .*old \(No space left on device\)"):
            write_bundle(old, parts)
        assert listing(place) == before
        Bundle.open(old)
