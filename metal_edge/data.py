"""Folders of pictures -> samples -> splits that can be recorded and checked later.

Two layouts are read: MVTec's (`train/good`, `test/<label>`, `ground_truth/<label>`), and a plain
folder that holds good pictures directly. Hidden files and files that are no pictures by their
suffix are ignored, as are sub-folders of a folder that holds pictures: whatever lies in
`rejects/` beside good pictures must not become training data.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metal_edge.errors import DataError, MissingInputError, SettingsError
from metal_edge.imaging import IMAGE_SUFFIXES, Crop, image_info, prepare, read_bytes, read_image

GOOD = "good"
MIN_DISTINCT = 5
MAX_LOADED_BYTES = 4 * 1024**3
_READERS = 2
_LAYOUT = "put good pictures directly in it, or in train/good (MVTec layout)"


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, what it shows (`good` or a defect's name), and its ground truth if any."""

    path: Path
    label: str
    mask: Path | None = None

    @property
    def good(self) -> bool:
        """Whether it shows a good part."""
        return self.label == GOOD


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder's samples, sorted by label and name. `train` holds good ones only."""

    root: Path
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """The size that all images share; None, None where they differ."""

    width: int | None
    height: int | None


@dataclass(frozen=True, slots=True)
class GoodSplit:
    """Good samples, divided by content: no picture lies on two sides.

    Attributes:
        train, val: all samples of their side, exact copies included.
        calibration: distinct pictures only, as split conformal prediction needs.
        sha256: of each sample's file, as read when the split was made.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    sha256: Mapping[Sample, str]


def load_dataset(root: Path) -> Dataset:
    """Lists a data folder; opens no picture.

    Raises:
        MissingInputError: no such folder.
        DataError: no folder, no pictures, or masks and pictures that do not match; names them.
    """
    try:
        return _list_dataset(root)
    except OSError as error:
        raise DataError(
            f"cannot list {error.filename or root} ({error.strerror or error})",
            "correct its permissions",
        ) from error


def _list_dataset(root: Path) -> Dataset:
    if not root.exists():
        raise MissingInputError(f"data folder {root} does not exist", "check the path")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", "give the folder that holds the pictures")
    train = root / "train" / GOOD
    folder = train if train.is_dir() else root
    samples = tuple(Sample(path, GOOD) for path in _pictures(folder))
    if not samples:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no pictures ({suffixes}) in {folder}", _LAYOUT)
    return Dataset(root, samples, _test_samples(root) if folder == train else ())


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """Everything named like a picture, even a broken link: it must fail loudly when read."""
    return [path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    stray = _pictures(parent)
    if stray:
        raise DataError(f"{stray[0]} lies in no label's folder", f"move it to {parent / '<label>'}")
    return [path for path in _entries(parent) if path.is_dir()]


def _test_samples(root: Path) -> tuple[Sample, ...]:
    images = {folder.name: _pictures(folder) for folder in _folders(root / "test")}
    masks = {folder.name: _pictures(folder) for folder in _folders(root / "ground_truth")}
    samples: list[Sample] = []
    for label in sorted(images.keys() | masks.keys()):
        samples += _with_masks(label, images.get(label, []), masks.get(label, []))
    if any(masks.values()):
        bare = [s for s in samples if not s.good and s.mask is None]
        if bare:
            raise DataError(
                f"defect image {bare[0].path} has no mask, but others have",
                f"add {root / 'ground_truth' / bare[0].label / bare[0].path.stem}_mask.png",
            )
    return tuple(samples)


def _with_masks(label: str, images: list[Path], masks: list[Path]) -> list[Sample]:
    """Pairs `<name>.*` with `<name>_mask.*` or `<name>.*`, one to one."""
    samples = []
    named: dict[str, list[Path]] = {}
    for mask in masks:
        named.setdefault(mask.stem, []).append(mask)
    owner: dict[Path, Path] = {}
    for image in images:
        mine = [*named.get(f"{image.stem}_mask", []), *named.get(image.stem, [])]
        if len(mine) > 1:
            raise DataError(f"{mine[0]} and {mine[1]} are both masks of {image}", "remove one")
        for mask in mine:
            if mask in owner:
                raise DataError(
                    f"mask {mask} fits both {owner[mask]} and {image}", "rename one of the images"
                )
            owner[mask] = image
        samples.append(Sample(image, label, mine[0] if mine else None))
    orphans = [mask for mask in masks if mask not in owner]
    if orphans:
        raise DataError(
            f"mask {orphans[0]} has no image in test/{label}", "remove it, or add its image"
        )
    return samples


def check_images(samples: Sequence[Sample], allow_mixed_sizes: bool = False) -> ImageFormat:
    """Reads every header: all usable, and all of one size unless mixed sizes are allowed.

    Raises:
        MissingInputError, DataError: an image that `read_image` would refuse by its header,
            mixed sizes, or no sample at all.
    """
    if not samples:
        raise DataError("there are no images to check", _LAYOUT)
    sizes = {}
    for sample in samples:
        info = image_info(sample.path)
        sizes[sample.path] = (info.width, info.height)
    counts = Counter(sizes.values()).most_common()
    if len(counts) == 1:
        return ImageFormat(*counts[0][0])
    if allow_mixed_sizes:
        return ImageFormat(None, None)
    rarest = counts[-1][0]
    odd = next(path for path, size in sizes.items() if size == rarest)
    shown = ", ".join(f"{count} of {size[0]}x{size[1]}" for size, count in counts[:3])
    more = f" and {len(counts) - 3} other sizes" if len(counts) > 3 else ""
    raise DataError(
        f"images have different sizes: {shown}{more}; {odd} is {rarest[0]}x{rarest[1]}",
        "remove the odd ones, or resize all with `--mixed-sizes resize`",
    )


def load_images(
    samples: Sequence[Sample],
    width: int,
    height: int,
    crop: Crop | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Decodes, crops and resizes every sample; only the resized pictures stay in memory.

    Args:
        width, height: of the result, in pixels; see `prepare`.
        crop: x, y, width, height in source pixels.
        progress: called with (done, total) after each picture, from this thread.

    Returns:
        uint8 [N, height, width, 3] RGB, in the order of `samples`.

    Raises:
        MissingInputError, DataError: a picture that cannot be used, or too many of them.
    """
    size = len(samples) * height * width * 3
    if size > MAX_LOADED_BYTES:
        raise DataError(
            f"{len(samples)} images at {width}x{height} need {size / 2**30:.1f} GiB,"
            f" the limit is {MAX_LOADED_BYTES / 2**30:.0f} GiB",
            "use fewer images or a smaller image size",
        )
    out = np.empty((len(samples), height, width, 3), np.uint8)

    def load(index: int) -> None:
        path = samples[index].path
        image = read_image(path)
        try:
            out[index] = prepare(image, width, height, crop)
        except DataError as error:
            raise DataError(f"{path}: {error.what}", error.remedy) from error

    pool = ThreadPoolExecutor(_READERS)
    try:
        jobs = [pool.submit(load, index) for index in range(len(samples))]
        for done, job in enumerate(jobs, start=1):
            job.result()
            if progress is not None:
                progress(done, len(samples))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, decode no more
    return out


def split_good(
    samples: Sequence[Sample],
    seed: int,
    val_fraction: float = 0.10,
    calibration_fraction: float = 0.15,
) -> GoodSplit:
    """Divides good samples into training, validation and calibration.

    A picture's side follows from the seed and its file's SHA-256, so neither names nor order
    matter, and exact copies stay together. Fractions are of the distinct pictures; validation
    and calibration get at least one.

    Raises:
        SettingsError: fractions that leave nothing to train on.
        DataError: a sample that is not good, or fewer than MIN_DISTINCT distinct pictures, or
            pictures that show nothing (all of one colour, or all the same).
    """
    bad = [sample for sample in samples if not sample.good]
    if bad:
        raise DataError(f"{bad[0].path} is labelled {bad[0].label}", "train on good parts only")
    ordered = sorted(samples, key=lambda sample: sample.path)
    digests = {sample: _sha256(sample.path) for sample in ordered}
    first: dict[str, Sample] = {}
    for sample, digest in digests.items():
        first.setdefault(digest, sample)
    total = len(first)
    if total < MIN_DISTINCT:
        raise DataError(
            f"{len(ordered)} good images hold {total} distinct ones, {MIN_DISTINCT} are needed",
            "record more good parts",
        )
    _check_informative([sample.path for sample in first.values()])
    ranked = sorted(first, key=lambda digest: _rank(seed, digest))
    calibration, val = _held_out(total, calibration_fraction, val_fraction)
    held = set(ranked[:calibration])
    checked = set(ranked[calibration : calibration + val])
    train = tuple(s for s in ordered if digests[s] not in held | checked)
    validation = tuple(s for s in ordered if digests[s] in checked)
    distinct = tuple(s for s in first.values() if digests[s] in held)
    used = {s: digests[s] for s in (*train, *validation, *distinct)}
    return GoodSplit(train, validation, distinct, used)


def _held_out(total: int, *fractions: float) -> list[int]:
    counts = [max(1, round(total * f)) for f in fractions if 0 < f < 1]
    if len(counts) < len(fractions) or sum(counts) >= total:
        shown = " and ".join(map(str, fractions))
        raise SettingsError(
            f"holding out fractions {shown} leaves nothing of {total} images to train on",
            "use fractions above 0 that sum to less than 1, for example 0.15 and 0.10",
        )
    return counts


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _rank(seed: int, digest: str) -> str:
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()


def _check_informative(paths: Sequence[Path]) -> None:
    """Refuses covered lenses and one picture saved many times; good sets end after two files."""
    reference = None
    textured = different = False
    for path in paths:
        image = read_image(path)
        reference = image if reference is None else reference
        textured = textured or image.min() != image.max()
        different = different or not np.array_equal(image, reference)
        if textured and different:
            return
    what = "show the same picture" if textured else "are of one colour"
    raise DataError(f"all {len(paths)} good images {what}", "check the camera, record again")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _FileRecord(_Record):
    path: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _SplitRecord(_Record):
    train: tuple[_FileRecord, ...] = Field(min_length=1)
    val: tuple[_FileRecord, ...] = Field(min_length=1)
    calibration: tuple[_FileRecord, ...] = Field(min_length=1)


def to_record(split: GoodSplit, root: Path) -> dict[str, list[dict[str, str]]]:
    """JSON-able evidence of a split: per side, each file's path below `root` and its SHA-256.

    Raises:
        ValueError: a sample lies outside `root`.
    """

    sides = {"train": split.train, "val": split.val, "calibration": split.calibration}
    return {
        side: [
            {"path": s.path.relative_to(root).as_posix(), "sha256": split.sha256[s]}
            for s in samples
        ]
        for side, samples in sides.items()
    }


def resolve_split(record: dict[str, Any], root: Path) -> GoodSplit:
    """Finds a recorded split again below `root` and proves that every file is unchanged.

    Raises:
        DataError: the record is malformed, leads outside `root`, puts one picture on two
            sides, or names files that vanished or changed; names the first and counts them.
    """
    try:
        sides = _SplitRecord.model_validate(record)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in item["loc"]) or "split"
        raise DataError(f"split record: {key}: {item['msg']}", "train again") from error
    files = [*sides.train, *sides.val, *sides.calibration]
    _check_sides(sides)
    _check_unchanged(files, root)

    def samples(side: Sequence[_FileRecord]) -> tuple[Sample, ...]:
        return tuple(Sample(root / file.path, GOOD) for file in side)

    digests = {Sample(root / file.path, GOOD): file.sha256 for file in files}
    return GoodSplit(samples(sides.train), samples(sides.val), samples(sides.calibration), digests)


def _check_sides(sides: _SplitRecord) -> None:
    hashes = [{f.sha256 for f in side} for side in (sides.train, sides.val, sides.calibration)]
    shared = sum(map(len, hashes)) > len(set.union(*hashes))
    if shared or len(hashes[2]) < len(sides.calibration):
        raise DataError(
            "split record: one picture is on two sides, or twice in calibration", "train again"
        )


def _check_unchanged(files: Sequence[_FileRecord], root: Path) -> None:
    vanished, changed = [], []
    for file in files:
        relative = PurePosixPath(file.path)
        if relative.is_absolute() or ".." in relative.parts:
            raise DataError(f"split record: {file.path} leads outside {root}", "train again")
        try:
            if _sha256(root / file.path) != file.sha256:
                changed.append(file.path)
        except MissingInputError:
            vanished.append(file.path)
    for names, what in ((vanished, "vanished"), (changed, "changed")):
        if names:
            raise DataError(
                f"{len(names)} of {len(files)} recorded images {what}, first {root / names[0]}",
                "restore the images that the model was trained with, or train again",
            )
