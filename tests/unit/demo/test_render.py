"""The renderer's laws: pure in (seed, index, defect), and a defect changes its mask only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metal_edge.demo.defects import MIN_MASK_PIXELS, SPILL, VISIBLE_LEVELS
from metal_edge.demo.render import (
    DEFECTS,
    FRAME_SIZE,
    LINE_INDEXES,
    LineSetup,
    PartSequence,
    contact_sheet,
    render_part,
)
from metal_edge.demo.render_fields import belt_texture, polar_texture
from metal_edge.errors import DataError, OutputError

seeds = st.integers(0, 2**40)
indexes = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(DEFECTS)


def test_a_part_is_the_same_in_any_order_and_alone_in_a_new_process() -> None:
    jobs = [(i, d) for i in range(3) for d in (None, *DEFECTS)]
    forward = {job: render_part(11, *job) for job in jobs}
    for job in reversed(jobs):
        again = render_part(11, *job)
        assert np.array_equal(again.image, forward[job].image), job
        assert np.array_equal(again.mask, forward[job].mask), job
    code = (
        "import sys; from metal_edge.demo.render import render_part\n"
        "part = render_part(11, 2, 'dent')\n"
        "sys.stdout.buffer.write(part.image.tobytes() + part.mask.tobytes())\n"
    )
    alone = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    here = forward[2, "dent"]
    assert alone == here.image.tobytes() + here.mask.tobytes()


def test_the_picture_does_not_depend_on_opencv_threads() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        single = render_part(1, 5, "stain").image
        cv2.setNumThreads(max(2, os.cpu_count() or 2))
        several = render_part(1, 5, "stain").image
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(single, several)


@settings(max_examples=60)
@given(seed=seeds, index=indexes, defect=kinds)
def test_a_defect_changes_its_mask_and_nothing_else(seed: int, index: int, defect: str) -> None:
    good, bad = render_part(seed, index), render_part(seed, index, defect)
    assert not good.mask.any()
    assert set(np.unique(bad.mask)) == {0, 255}
    assert np.count_nonzero(bad.mask) >= MIN_MASK_PIXELS
    side = 2 * SPILL + 1
    near = cv2.dilate(bad.mask, np.ones((side, side), np.uint8)) > 0
    assert np.array_equal(good.image[~near], bad.image[~near])
    # Same noise on both: a masked pixel that did not move at all would not be altered.
    moved = (good.image != bad.image).any(axis=-1)[bad.mask > 0]
    assert moved.mean() > 0.95


@settings(max_examples=60)
@given(seed=seeds, index=indexes, defect=kinds)
@example(seed=5, index=202, defect="dent")  # hid beside the hub step on its first draw
def test_even_a_mild_defect_shows_at_model_resolution(seed: int, index: int, defect: str) -> None:
    small = [
        cv2.resize(part.image, (128, 128), interpolation=cv2.INTER_AREA).astype(float)
        for part in (render_part(seed, index), render_part(seed, index, defect))
    ]
    change = np.abs(small[1] - small[0]).max(axis=-1)
    # Both pictures carry the same noise; rounding and shot noise cost up to a level or two.
    assert np.sort(change, axis=None)[-6:].mean() > VISIBLE_LEVELS[defect] - 2


@settings(max_examples=25)
@given(seed=seeds, index=indexes)
def test_a_good_part_stands_between_the_rails(seed: int, index: int) -> None:
    image = render_part(seed, index).image
    assert image.shape == (FRAME_SIZE, FRAME_SIZE, 3)
    assert image.dtype == np.uint8
    grey = cv2.GaussianBlur(image.mean(axis=-1), (0, 0), 3)
    part = grey > 100
    border = np.concatenate([part[:25].ravel(), part[-25:].ravel(), part[:, :25].ravel()])
    assert not border.any()
    assert 0.35 < part.mean() < 0.48  # the flange's face, bored and drilled
    assert 130 < grey[part].mean() < 205
    assert 30 < grey[:25].mean() < 80  # belt: dark, not black
    assert (image == 255).mean() < 0.005


def test_no_two_parts_or_seeds_look_alike() -> None:
    face = (slice(200, 245), slice(60, 92))  # bare face between two holes
    high = []
    for seed, index in ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2**32 + 1, 0)):
        grey = render_part(seed, index).image.mean(axis=-1)
        high.append((grey - cv2.GaussianBlur(grey, (0, 0), 3))[face].ravel())
    correlation = np.abs(np.corrcoef(high) - np.eye(len(high)))
    # Streaks leave some thirty degrees of freedom, so chance alone reaches 0.5; a copy gives 1.
    assert correlation.max() < 0.7


def test_rotation_follows_the_setup() -> None:
    def notch_row(part_setup: LineSetup, index: int) -> np.ndarray:
        return render_part(3, index, setup=part_setup).image

    still = LineSetup(rotation_deg=0, shift_px=0)
    a, b = (cv2.GaussianBlur(notch_row(still, i).mean(axis=-1), (0, 0), 2) for i in (0, 1))
    c, d = (cv2.GaussianBlur(render_part(3, i).image.mean(axis=-1), (0, 0), 2) for i in (0, 1))
    holes_still = np.mean((a < 100) != (b < 100))
    holes_moved = np.mean((c < 100) != (d < 100))
    assert holes_still < 0.01 < holes_moved


@pytest.mark.parametrize("texture", [polar_texture, belt_texture])
def test_textures_have_no_seam(texture: object) -> None:
    field = np.atleast_3d(texture())  # type: ignore[operator]
    period = 1024
    step = np.abs(np.diff(field[:, : period + 2, 0], axis=1)).mean(axis=0)
    assert step[period - 1] < 1.25 * np.median(step)
    rows = np.abs(np.diff(field[: period + 2, :, 0], axis=0)).mean(axis=1)
    assert rows[period - 1] < 1.25 * np.median(rows)


@pytest.mark.parametrize("call", [(-1, 0, None), (0, -1, None), (0, 2**32, None), (0, 0, "rust")])
def test_what_cannot_be_rendered_is_refused(call: tuple[int, int, str | None]) -> None:
    with pytest.raises(ValueError, match=r"negative|outside|none of"):
        render_part(*call)


def test_the_line_brings_defects_at_its_rate_and_says_which() -> None:
    line = PartSequence(5, defect_rate=0.2, explicit={3: "dent", 4: None})
    truth = [line.defect_of(i) for i in range(2000)]
    assert truth == [line.defect_of(i) for i in range(2000)]
    assert truth[3:5] == ["dent", None]
    assert 320 < sum(d is not None for d in truth) < 480  # 400 +- 4.5 standard deviations
    assert set(truth) == {None, *DEFECTS}
    assert all(PartSequence(5).defect_of(i) is None for i in range(100))
    part = line.render(3)
    assert (part.defect, part.index) == ("dent", 3)
    assert np.array_equal(part.image, render_part(5, 3, "dent").image)


@given(st.integers(0, LINE_INDEXES.stop - 1))
def test_part_ids_name_one_part(index: int) -> None:
    assert PartSequence.index_of(PartSequence.part_id(index)) == index


@given(st.one_of(st.text(max_size=12), st.from_regex(r"P-[0-9]{1,12}", fullmatch=True)))
def test_an_id_is_this_lines_own_or_refused(text: str) -> None:
    try:
        index = PartSequence.index_of(text)
    except DataError:
        return
    assert PartSequence.part_id(index) == text


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="defect_rate"):
        PartSequence(0, rate)


def test_the_contact_sheet_shows_a_row_per_kind(tmp_path: Path) -> None:
    target = tmp_path / "docs" / "sheet.png"
    contact_sheet(7, target, columns=2)
    sheet = cv2.imread(str(target))
    assert sheet is not None
    assert sheet.shape == (6 * FRAME_SIZE // 2, FRAME_SIZE, 3)
    first = cv2.resize(render_part(7, 0).image, (192, 192), interpolation=cv2.INTER_AREA)
    assert np.abs(sheet[:192, :192, ::-1].astype(int) - first).max() <= 1
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another place"):
        contact_sheet(7, tmp_path / "file" / "sheet.png", columns=1)
