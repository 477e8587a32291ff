"""A small MVTec-style folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.redness import BOX, write_sample

from metal_edge.data import Sample, load_dataset
from metal_edge.imaging import write_png


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """3 good (scores 40, 40, 120 of 255), 2 `dent` (200, 60) and 1 `scratch` (220), with masks."""
    root = tmp_path / "data"
    write_png(root / "train" / "good" / "000.png", np.full((64, 64, 3), 40, np.uint8))
    for name, redness in (("000", 40), ("001", 40), ("002", 120)):
        write_sample(root, "good", name, redness, truth=None)
    write_sample(root, "dent", "000", 200, truth=[BOX])
    write_sample(root, "dent", "001", 60, truth=[BOX])
    write_sample(root, "scratch", "000", 220, truth=[(slice(40, 44), slice(4, 60))])
    return root


@pytest.fixture
def samples(data: Path) -> tuple[Sample, ...]:
    return load_dataset(data).test
