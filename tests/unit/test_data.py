"""Folders to samples, on real folders of generated pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import PIL.Image
import pytest
from support.picture_folders import mask, mvtec, picture, plain

from metal_edge.data import Dataset, ImageFormat, Sample, check_images, load_dataset, load_images
from metal_edge.errors import DataError, MetalEdgeError, MissingInputError
from metal_edge.imaging import read_image

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
    tmp_path: Path, make: Callable[[Path], Path], kind: type[MetalEdgeError], reason: str
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
