"""The rendered data set: layout, truth, disjoint parts, all or nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.demo.dataset import plan_dataset, write_dataset
from metal_edge.demo.render import DEFECTS, LINE_INDEXES, render_part
from metal_edge.errors import OutputError

counts = st.integers(0, 40)


def names(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def read(path: Path, flag: int) -> np.ndarray:
    pixels = cv2.imread(str(path), flag)
    assert pixels is not None, path
    return pixels


def test_layout_pixels_and_masks(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = tmp_path / "flange"
    write_dataset(root, 9, 3, 2, 2, progress=lambda done, total: seen.append((done, total)))
    expected = {f"train/good/{i:03d}.png" for i in range(3)}
    expected |= {f"test/good/{i:03d}.png" for i in range(2)}
    expected |= {f"test/{d}/{i:03d}.png" for d in DEFECTS for i in range(2)}
    expected |= {f"ground_truth/{d}/{i:03d}_mask.png" for d in DEFECTS for i in range(2)}
    assert names(root) == expected
    assert seen == [(i, 15) for i in range(1, 16)]
    assert [p.name for p in tmp_path.iterdir()] == ["flange"]
    for item in plan_dataset(3, 2, 2):
        part = render_part(9, item.index, item.defect)
        image = read(root / item.path, cv2.IMREAD_COLOR)[..., ::-1]
        assert np.array_equal(image, part.image), item
        if item.mask_path is not None:
            assert np.array_equal(read(root / item.mask_path, cv2.IMREAD_UNCHANGED), part.mask)


@given(train=counts, test=counts, per_defect=counts)
def test_no_part_is_shared(train: int, test: int, per_defect: int) -> None:
    plan = plan_dataset(train, test, per_defect)
    indexes = [item.index for item in plan]
    assert len(set(indexes)) == len(plan) == train + test + per_defect * len(DEFECTS)
    assert not any(index in LINE_INDEXES for index in indexes)
    assert len({item.path for item in plan}) == len(plan)
    assert all((item.defect is None) == (item.mask_path is None) for item in plan)


@given(train=counts, test=counts, per_defect=counts, more=counts)
def test_more_training_images_leave_the_test_set_as_it_was(
    train: int, test: int, per_defect: int, more: int
) -> None:
    def tests(first: int) -> set[object]:
        plan = plan_dataset(first, test, per_defect)
        return {item for item in plan if item.path.parts[0] == "test"}

    assert tests(train) == tests(train + more)


def test_an_existing_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(OutputError, match="already exists"):
        write_dataset(tmp_path / "mine", 0, 1, 0, 0)
    assert names(tmp_path) == {"mine/letter.txt"}


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "flange", 0, 4, 0, 0, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="flange"):
        write_dataset(tmp_path / "file" / "flange", 0, 1, 0, 0)


def test_negative_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train/good"):
        write_dataset(tmp_path / "flange", 0, -1, 0, 0)
    assert list(tmp_path.iterdir()) == []
