"""Folders to samples to splits, on real folders of generated pictures."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metal_edge.data import (
    MIN_DISTINCT,
    Dataset,
    GoodSplit,
    ImageFormat,
    Sample,
    check_images,
    load_dataset,
    load_images,
    resolve_split,
    split_good,
    to_record,
)
from metal_edge.errors import DataError, MetalEdgeError, MissingInputError, SettingsError
from metal_edge.imaging import read_image, read_mask

REAL = Path(os.environ.get("METAL_EDGE_DATA", Path(__file__).parents[3] / "shared" / "data"))


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


# --- listing


def test_mvtec_layout(tmp_path: Path) -> None:
    data = load_dataset(mvtec(tmp_path))
    assert [s.path.name for s in data.train] == [f"{i:03}.png" for i in range(6)]
    assert all(s.good and s.mask is None for s in data.train)
    truth = tmp_path / "ground_truth"
    assert [(s.label, s.path.name, s.mask, s.good) for s in data.test] == [
        ("dent", "000.jpg", truth / "dent/000.png", False),
        ("good", "000.png", None, True),
        ("scratch", "000.png", truth / "scratch/000_mask.png", False),
        ("scratch", "001.png", truth / "scratch/001_mask.png", False),
    ]


def test_plain_folder_is_all_train(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.webp"):
        picture(tmp_path / name)
    data = load_dataset(tmp_path)
    expected = tuple(Sample(tmp_path / name, "good") for name in ("a.jpg", "b.PNG", "c.webp"))
    assert data == Dataset(tmp_path, expected, ())


def test_only_visible_pictures_of_the_folder_itself_count(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / ".hidden.png")
    picture(tmp_path / "._a.png")
    picture(tmp_path / "rejects/bad.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert [s.path.name for s in load_dataset(tmp_path).train] == ["a.png"]


def test_a_broken_link_or_folder_named_like_a_picture_is_not_skipped(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone")
    data = load_dataset(tmp_path)
    with pytest.raises(MissingInputError, match=r"b\.png"):
        check_images(data.train)
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").mkdir()
    with pytest.raises(DataError, match=r"b\.png is a directory"):
        check_images(load_dataset(tmp_path).train)


def test_a_set_without_any_mask_is_fine(tmp_path: Path) -> None:
    shutil.rmtree(mvtec(tmp_path) / "ground_truth")
    data = load_dataset(tmp_path)
    assert len(data.test) == 4
    assert all(s.mask is None for s in data.test)


def _missing(root: Path) -> Path:
    return root / "none"


def _a_file(root: Path) -> Path:
    return picture(root / "file.png")


def _empty(root: Path) -> Path:
    return root


def _empty_train(root: Path) -> Path:
    (root / "train/good").mkdir(parents=True)
    picture(root / "beside.png")
    return root


def _nested(root: Path) -> Path:
    picture(root / "day1/a.png")
    return root


def _orphan_mask(root: Path) -> Path:
    mask(mvtec(root) / "ground_truth/scratch/777_mask.png")
    return root


def _orphan_label(root: Path) -> Path:
    mask(mvtec(root) / "ground_truth/crack/000_mask.png")
    return root


def _bare_defect(root: Path) -> Path:
    (mvtec(root) / "ground_truth/scratch/001_mask.png").unlink()
    return root


def _two_masks(root: Path) -> Path:
    mask(mvtec(root) / "ground_truth/scratch/001.png")
    return root


def _shared_mask(root: Path) -> Path:
    picture(mvtec(root) / "test/scratch/001.jpg")
    return root


def _stray_test(root: Path) -> Path:
    picture(mvtec(root) / "test/stray.png")
    return root


@pytest.mark.parametrize(
    ("make", "kind", "reason"),
    [
        (_missing, MissingInputError, "none does not exist"),
        (_a_file, DataError, "file.png is not a folder"),
        (_empty, DataError, "no pictures"),
        (_empty_train, DataError, "no pictures .* in .*train/good"),
        (_nested, DataError, "no pictures"),
        (_orphan_mask, DataError, "ground_truth/scratch/777_mask.png has no image"),
        (_orphan_label, DataError, "ground_truth/crack/000_mask.png has no image"),
        (_bare_defect, DataError, "test/scratch/001.png has no mask"),
        (_two_masks, DataError, "001_mask.png and .*001.png are both masks"),
        (_shared_mask, DataError, "001_mask.png fits both .*001.jpg and .*001.png"),
        (_stray_test, DataError, "test/stray.png lies in no label"),
    ],
)
def test_folders_that_cannot_be_used_say_why(
    tmp_path: Path,
    make: Callable[[Path], Path],
    kind: type[MetalEdgeError],
    reason: str,
) -> None:
    with pytest.raises(kind, match=reason) as caught:
        load_dataset(make(tmp_path))
    assert caught.value.remedy


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "set/a.png")
    (tmp_path / "set").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=f"cannot list {tmp_path}/set"):
            load_dataset(tmp_path / "set")
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "set").chmod(0o700)


# --- checking and loading


def test_check_images_gives_the_common_size(tmp_path: Path) -> None:
    assert check_images(plain(tmp_path, 4)) == ImageFormat(8, 6)


def test_mixed_sizes_are_counted_and_the_odd_one_named(tmp_path: Path) -> None:
    samples = [*plain(tmp_path, 4), Sample(picture(tmp_path / "odd.png", 9, (6, 8)), "good")]
    with pytest.raises(DataError, match=r"4 of 8x6, 1 of 6x8; .*odd\.png") as caught:
        check_images(samples)
    assert "--mixed-sizes resize" in caught.value.remedy
    assert check_images(samples, allow_mixed_sizes=True) == ImageFormat(None, None)


def test_check_images_refuses_by_header_and_nothing_at_all(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    PIL.Image.fromarray(np.zeros((6, 8), np.uint16)).save(deep)
    with pytest.raises(DataError, match=r"deep\.png"):
        check_images([*plain(tmp_path, 2), Sample(deep, "good")], allow_mixed_sizes=True)
    with pytest.raises(DataError, match="no images"):
        check_images([])


def test_load_images_keeps_the_order_and_reports_progress(tmp_path: Path) -> None:
    samples = plain(tmp_path, 9)[::-1]
    seen: list[tuple[int, int]] = []
    out = load_images(samples, 8, 6, progress=lambda done, total: seen.append((done, total)))
    assert out.shape == (9, 6, 8, 3) and out.dtype == np.uint8
    for row, sample in zip(out, samples, strict=True):
        assert np.array_equal(row, read_image(sample.path))
    assert seen == [(i, 9) for i in range(1, 10)]


def test_load_images_crops_and_names_the_image_that_is_too_small(tmp_path: Path) -> None:
    samples = [*plain(tmp_path, 2), Sample(picture(tmp_path / "tiny.png", 9, (4, 4)), "good")]
    out = load_images(samples[:2], 3, 2, crop=(5, 4, 3, 2))
    assert np.array_equal(out[1], read_image(samples[1].path)[4:, 5:])
    with pytest.raises(DataError, match=r"tiny\.png: crop"):
        load_images(samples, 3, 2, crop=(5, 4, 3, 2))


def test_a_damaged_image_stops_the_loading(tmp_path: Path) -> None:
    samples = plain(tmp_path, 40)
    broken = samples[1].path
    broken.write_bytes(broken.read_bytes()[:-30])
    done: list[int] = []
    with pytest.raises(DataError, match=str(broken)):
        load_images(samples, 8, 6, progress=lambda n, _: done.append(n))
    assert done == [1]


class CountedPath(PosixPath):
    """Counts how often it is opened."""

    opened = 0

    def open(self, *args: Any, **kwargs: Any) -> Any:
        CountedPath.opened += 1
        return super().open(*args, **kwargs)


def test_after_an_error_the_rest_is_not_decoded(tmp_path: Path) -> None:
    good = Sample(CountedPath(picture(tmp_path / "good.png", size=(64, 64))), "good")
    CountedPath.opened = 0
    with pytest.raises(MissingInputError, match="gone"):
        load_images([Sample(tmp_path / "gone.png", "good"), *[good] * 2000], 8, 6)
    assert CountedPath.opened < 2000


def test_too_much_memory_is_refused_before_any_file_is_read(tmp_path: Path) -> None:
    samples = [Sample(tmp_path / f"{i}.png", "good") for i in range(1000)]
    with pytest.raises(DataError, match=r"5\.6 GiB, the limit is 4 GiB") as caught:
        load_images(samples, 2000, 1000)
    assert "smaller" in caught.value.remedy


# --- splitting


def sides(split: GoodSplit) -> list[set[str]]:
    return [{split.sha256[s] for s in side} for side in (split.train, split.val, split.calibration)]


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(st.integers(0, 60), min_size=5, max_size=40).filter(
        lambda c: len(set(c)) >= MIN_DISTINCT
    ),
    seed=st.integers(0, 2**32),
    order=st.randoms(use_true_random=False),
)
def test_a_split_divides_contents_and_ignores_names_and_order(
    contents: list[int], seed: int, order: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        samples = [
            Sample(picture(root / f"a/{i:03}.png", c), "good") for i, c in enumerate(contents)
        ]
        split = split_good(samples, seed)
        train, val, calibration = sides(split)
        distinct = {hashlib.sha256(s.path.read_bytes()).hexdigest() for s in samples}
        assert train | val | calibration == distinct
        assert len(train) + len(val) + len(calibration) == len(distinct)
        assert min(len(train), len(val), len(calibration)) >= 1
        assert len(split.calibration) == len(calibration)
        repeated = len(samples) - len(distinct)
        kept = len(split.train) + len(split.val) + len(split.calibration)
        assert len(distinct) <= kept <= len(distinct) + repeated
        assert split.sha256.keys() == {*split.train, *split.val, *split.calibration}

        shuffled = list(samples)
        order.shuffle(shuffled)
        assert split_good(shuffled, seed) == split

        names = [f"{i:03}" for i in range(len(samples))]
        order.shuffle(names)
        renamed = []
        for sample, name in zip(samples, names, strict=True):
            target = root / "b" / f"{name}.png"
            target.parent.mkdir(exist_ok=True)
            renamed.append(Sample(sample.path.rename(target), "good"))
        assert sides(split_good(renamed, seed)) == [train, val, calibration]

        record = json.loads(json.dumps(to_record(split_good(renamed, seed), root)))
        assert sides(resolve_split(record, root)) == [train, val, calibration]


def test_copies_stay_together_and_calibrate_once(tmp_path: Path) -> None:
    samples = plain(tmp_path / "a", 8)
    copies = []
    for sample in samples:
        copy = tmp_path / "b" / sample.path.name
        copy.parent.mkdir(exist_ok=True)
        copies.append(Sample(shutil.copy(sample.path, copy), "good"))
    split = split_good([*copies, *samples], 3)
    assert (len(split.train), len(split.val), len(split.calibration)) == (12, 2, 1)
    assert sides(split) == sides(split_good(samples, 3))


def test_the_seed_and_the_fractions_matter(tmp_path: Path) -> None:
    samples = plain(tmp_path, 20)
    assert len({split_good(samples, seed).calibration for seed in range(5)}) > 1
    split = split_good(samples, 0, val_fraction=0.2, calibration_fraction=0.5)
    assert (len(split.train), len(split.val), len(split.calibration)) == (6, 4, 10)


def test_a_new_image_moves_few_others(tmp_path: Path) -> None:
    samples = plain(tmp_path, 40)
    before, after = split_good(samples[:-1], 0), split_good(samples, 0)
    assert len(set(before.calibration) - set(after.calibration)) <= 1


@pytest.mark.parametrize(
    ("val", "calibration"),
    [(0, 0.2), (0.2, 0), (0.5, 0.6), (-1, 0.5), (0.3, 0.69), (float("nan"), 0.1), (2, 2)],
)
def test_fractions_that_leave_nothing(tmp_path: Path, val: float, calibration: float) -> None:
    with pytest.raises(SettingsError, match="fractions"):
        split_good(plain(tmp_path, 6), 0, val, calibration)


def test_too_few_distinct_images_say_how_many_are_needed(tmp_path: Path) -> None:
    samples = plain(tmp_path, 4)
    for i in range(5):
        copy = shutil.copy(samples[0].path, tmp_path / f"copy{i}.png")
        samples.append(Sample(copy, "good"))
    with pytest.raises(DataError, match="9 good images hold 4 distinct ones, 5 are needed"):
        split_good(samples, 0)
    samples.append(Sample(picture(tmp_path / "new.png", 99), "good"))
    assert len(split_good(samples, 0).calibration) == 1


def test_defects_are_never_split_for_training(tmp_path: Path) -> None:
    samples = [*plain(tmp_path, 6), Sample(picture(tmp_path / "bad.png", 9), "scratch")]
    with pytest.raises(DataError, match=r"bad\.png is labelled scratch"):
        split_good(samples, 0)


def test_a_covered_lens_is_noticed(tmp_path: Path) -> None:
    samples = []
    for i in range(6):
        PIL.Image.new("RGB", (8, 6), (i, i, i)).save(tmp_path / f"{i}.png")
        samples.append(Sample(tmp_path / f"{i}.png", "good"))
    with pytest.raises(DataError, match="all 6 good images are of one colour"):
        split_good(samples, 0)


def test_one_picture_saved_many_ways_is_noticed(tmp_path: Path) -> None:
    pixels = read_image(picture(tmp_path / "x.png"))
    samples = []
    for i, suffix in enumerate(("png", "bmp", "tif", "webp")):
        path = tmp_path / f"{i}.{suffix}"
        PIL.Image.fromarray(pixels).save(path, lossless=True)
        samples.append(Sample(path, "good"))
    PIL.Image.fromarray(pixels).convert("RGBA").save(tmp_path / "4.png")
    samples.append(Sample(tmp_path / "4.png", "good"))
    with pytest.raises(DataError, match="all 5 good images show the same picture"):
        split_good(samples, 0)


# --- recording


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, GoodSplit, dict[str, list[dict[str, str]]]]:
    split = split_good(plain(tmp_path / "set", 12), 0)
    return tmp_path / "set", split, to_record(split, tmp_path / "set")


Recorded = tuple[Path, GoodSplit, dict[str, list[dict[str, str]]]]


def test_a_record_survives_json_and_a_moved_folder(recorded: Recorded, tmp_path: Path) -> None:
    root, split, record = recorded
    record = json.loads(json.dumps(record))
    assert resolve_split(record, root) == split
    moved = root.rename(tmp_path / "elsewhere")
    again = resolve_split(record, moved)
    assert [s.path.name for s in again.calibration] == [s.path.name for s in split.calibration]


def test_vanished_and_changed_files_are_named(recorded: Recorded) -> None:
    root, split, record = recorded
    first = split.val[0].path
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(DataError, match=f"1 of 12 recorded images vanished, first {first}"):
        resolve_split(record, root)
    first.write_bytes(content + b"\0")
    with pytest.raises(DataError, match=f"1 of 12 recorded images changed, first {first}"):
        resolve_split(record, root)
    first.write_bytes(content)
    assert resolve_split(record, root) == split


def test_records_that_lie_are_refused(recorded: Recorded) -> None:
    root, _, record = recorded
    twice = {**record, "calibration": [record["calibration"][0]] * 2}
    leak = {**record, "calibration": [*record["calibration"], record["train"][0]]}
    outside = {**record, "val": [{**record["val"][0], "path": "../x.png"}]}
    absolute = {**record, "val": [{**record["val"][0], "path": "/x.png"}]}
    missing = {k: v for k, v in record.items() if k != "val"}
    for lie, reason in [
        (twice, "twice"),
        (leak, "two sides"),
        (outside, "outside"),
        (absolute, "outside"),
        (missing, "val: Field required"),
        ({**record, "extra": []}, "extra"),
        ({**record, "train": []}, "train"),
        ({**record, "val": [{"path": "a.png", "sha256": "zz"}]}, "val.0.sha256"),
    ]:
        with pytest.raises(DataError, match=reason):
            resolve_split(lie, root)


# --- real sets


@pytest.mark.parametrize(
    ("name", "train", "test", "masks"),
    [("toothbrush", 48, 42, 30), ("magnetic_tile", 762, 578, 388), ("head_ct", 80, 120, 0)],
)
def test_real_sets(name: str, train: int, test: int, masks: int) -> None:
    root = REAL / name
    if not root.is_dir():
        pytest.skip(f"{root} is absent; set METAL_EDGE_DATA to the folder of real sets")
    found = load_dataset(root)
    assert (len(found.train), len(found.test)) == (train, test)
    assert check_images(found.train + found.test) == ImageFormat(256, 256)
    truth = [s.mask for s in found.test if s.mask is not None]
    assert len(truth) == masks
    assert all(read_mask(path, 256, 256).any() for path in truth[:20])
    split = split_good(found.train, 0)
    assert resolve_split(to_record(split, root), root) == split
    assert load_images(split.calibration, 32, 32).std() > 0
