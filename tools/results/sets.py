"""Which data sets are measured: folders in MVTec layout, and the simulated line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metal_edge.data import Dataset, load_dataset
from metal_edge.demo.dataset import write_dataset
from metal_edge.errors import DataError, MissingInputError, SettingsError

LINE = "line"
LINE_SEED = 2026
MIN_TRAIN = 10  # fewer leave one validation and one held-out image


@dataclass(frozen=True)
class LineSize:
    """Pictures of the simulated line: for training, good ones and ones per defect to test."""

    train_good: int = 200
    test_good: int = 60
    per_defect: int = 12


def discover(data: Path) -> dict[str, Path]:
    """Data sets by name: `data` itself if it is one, else every one directly below it.

    Raises:
        MissingInputError: no such folder.
        DataError: no data set there.
    """
    root = data.expanduser().resolve()
    if not root.is_dir():
        raise MissingInputError(f"data folder {data} does not exist", "give one with --data")
    if _is_set(root):
        return {root.name: root}
    found = {path.name: path for path in sorted(root.iterdir()) if _is_set(path)}
    if not found:
        raise DataError(
            f"{data} holds no data set", "it needs <set>/train/good and <set>/test/<label>"
        )
    return found


def choose(found: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """The named sets; None is all.

    Raises:
        SettingsError: an unknown name.
    """
    for name in names or ():
        if name not in found:
            raise SettingsError(
                f"there is no data set {name!r}", f"choose among {', '.join(found)}"
            )
    return [name for name in found if names is None or name in names]


def line_folder(folder: Path, size: LineSize) -> Path:
    """Where below `folder` the simulated line's pictures lie."""
    counts = f"{size.train_good}-{size.test_good}-{size.per_defect}"
    return folder / f"{LINE}-{LINE_SEED}-{counts}"


def ensure_line(
    folder: Path, size: LineSize, progress: Callable[[int, int], None] | None = None
) -> Path:
    """The simulated line's pictures below `folder`, rendered unless they are there."""
    root = line_folder(folder, size)
    if not root.is_dir():
        write_dataset(root, LINE_SEED, size.train_good, size.test_good, size.per_defect, progress)
    return root


def load_checked(root: Path) -> Dataset:
    """A data set that can be trained and tested on.

    Raises:
        DataError: too few good images, or no good and anomalous test images.
    """
    dataset = load_dataset(root)
    if len(dataset.train) < MIN_TRAIN:
        raise DataError(
            f"{root} has {len(dataset.train)} good training images, {MIN_TRAIN} are needed",
            "add some to train/good",
        )
    good = sum(sample.good for sample in dataset.test)
    if not good or good == len(dataset.test):
        missing = "good" if not good else "anomalous"
        raise DataError(f"{root} has no {missing} test image", "add test/good and test/<defect>")
    return dataset


def digest(dataset: Dataset) -> str:
    """SHA-256 over every picture and mask, names and labels included, wherever the set lies."""
    whole = hashlib.sha256()
    for sample in (*dataset.train, *dataset.test):
        for path in (sample.path, sample.mask):
            if path is not None:
                whole.update(str(path.relative_to(dataset.root)).encode("utf-8", "surrogateescape"))
                whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _is_set(path: Path) -> bool:
    return (path / "train" / "good").is_dir() and (path / "test").is_dir()
