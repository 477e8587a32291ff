"""Folders of small pictures, as data sets come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from metal_edge.data import Sample


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("L", (8, 6), 255).save(path)
    return path


def mvtec(root: Path) -> Path:
    for i in range(6):
        picture(root / f"train/good/{i:03}.png", i)
    picture(root / "test/good/000.png", 10)
    for i in range(2):
        picture(root / f"test/scratch/{i:03}.png", 20 + i)
        mask(root / f"ground_truth/scratch/{i:03}_mask.png")
    picture(root / "test/dent/000.jpg", 30)
    mask(root / "ground_truth/dent/000.png")
    return root


def plain(root: Path, count: int) -> list[Sample]:
    return [Sample(picture(root / f"{i:03}.png", i), "good") for i in range(count)]
