"""Samples to splits and their records, on real folders of generated pictures."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.picture_folders import picture, plain

from metal_edge.data import (
    MIN_DISTINCT,
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
from metal_edge.errors import DataError, SettingsError
from metal_edge.imaging import read_image, read_mask

REAL = Path(os.environ.get("METAL_EDGE_DATA", Path(__file__).parents[3] / "shared" / "data"))


# --- splitting


def sides(split: GoodSplit) -> list[set[str]]:
    return [{split.sha256[s] for s in side} for side in (split.train, split.val, split.calibration)]


@settings(max_examples=40)
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
