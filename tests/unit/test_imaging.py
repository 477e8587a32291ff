"""Masks, the pure picture functions, overlays, and what is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.picture_files import picture, save

from metal_edge.domain import Image
from metal_edge.errors import DataError, OutputError
from metal_edge.imaging import heatmap, overlay, prepare, read_image, read_mask, write_png

# --- masks


@pytest.mark.parametrize("high", [1, 128, 255])
def test_mask_levels(tmp_path: Path, high: int) -> None:
    values = np.zeros((6, 9), np.uint8)
    values[2:4, 5:] = high
    path = save(tmp_path / "m.png", PIL.Image.fromarray(values))
    mask = read_mask(path, 6, 9)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, values > 0)


def test_mask_edges_are_cut_at_half(tmp_path: Path) -> None:
    values = np.array([[0, 127, 128, 255]], np.uint8)
    mask = read_mask(save(tmp_path / "m.png", PIL.Image.fromarray(values)), 1, 4)
    assert mask.tolist() == [[False, False, True, True]]


def test_an_empty_mask_is_empty(tmp_path: Path) -> None:
    assert not read_mask(save(tmp_path / "m.png", PIL.Image.new("L", (4, 5))), 5, 4).any()


def test_doubtful_masks_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", PIL.Image.new("L", (4, 5), 3))
    with pytest.raises(DataError, match="values up to 3"):
        read_mask(path, 5, 4)
    with pytest.raises(DataError, match=r"mask .*m\.png is 4x5, its image 5x4"):
        read_mask(path, 4, 5)


# --- prepare

sides = st.integers(1, 70)


@given(value=hnp.arrays(np.uint8, 3), source=st.tuples(sides, sides), size=st.tuples(sides, sides))
def test_a_constant_image_stays_constant(
    value: Image, source: tuple[int, int], size: tuple[int, int]
) -> None:
    image = np.broadcast_to(value, (*source, 3)).astype(np.uint8)
    out = prepare(image, *size)
    assert out.shape == (size[1], size[0], 3)
    assert (out == value).all()


@given(factor=st.tuples(st.integers(1, 5), st.integers(1, 5)), seed=st.integers(0, 1000))
def test_shrinking_by_whole_factors_is_the_mean(factor: tuple[int, int], seed: int) -> None:
    fy, fx = factor
    image = np.random.default_rng(seed).integers(0, 256, (7 * fy, 4 * fx, 3), np.uint8)
    mean = image.reshape(7, fy, 4, fx, 3).mean(axis=(1, 3))
    assert np.abs(prepare(image, 4, 7) - mean).max() <= 0.501


@given(data=st.data())
def test_crop_is_the_slice_and_never_a_view(data: st.DataObject) -> None:
    image = picture(20, 30)
    x, y = data.draw(st.integers(0, 29)), data.draw(st.integers(0, 19))
    width, height = data.draw(st.integers(1, 30 - x)), data.draw(st.integers(1, 20 - y))
    out = prepare(image, width, height, (x, y, width, height))
    assert np.array_equal(out, image[y : y + height, x : x + width])
    assert out.flags.c_contiguous
    assert not np.shares_memory(out, image)


def test_one_axis_shrinks_by_area_while_the_other_grows() -> None:
    """OpenCV alone would sample: alternating columns must average to grey, not to stripes."""
    image = np.zeros((4, 64, 3), np.uint8)
    image[:, ::2] = 200
    assert (prepare(image, 8, 16) == 100).all()


@pytest.mark.parametrize(
    "crop",
    [(-1, 0, 5, 5), (0, -1, 5, 5), (33, 0, 5, 5), (0, 20, 5, 5), (0, 0, 0, 5), (0, 0, 5, -5)],
)
def test_a_crop_outside_is_refused(crop: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError, match="37x24"):
        prepare(picture(), 8, 8, crop)


@pytest.mark.parametrize(
    "image", [picture()[..., 0], picture().astype(np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_prepare_wants_rgb_bytes(image: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        prepare(image, 8, 8)


# --- overlays


@given(
    maps=hnp.arrays(np.float32, (5, 6), elements=st.floats(0, 4, width=32)),
    other=hnp.arrays(np.float32, (5, 6), elements=st.floats(0, 4, width=32)),
    threshold=st.floats(0.1, 3),
)
def test_the_colour_of_a_value_never_depends_on_the_rest_of_the_map(
    maps: Any, other: Any, threshold: float
) -> None:
    other[2, 3] = maps[2, 3]
    a, b = heatmap(maps, threshold), heatmap(other, threshold)
    assert np.array_equal(a[2, 3], b[2, 3])


def test_brighter_means_more_anomalous_up_to_twice_the_threshold() -> None:
    values = np.array([[0, 0.5, 1, 1.5, 2, 3]], np.float32)
    total = heatmap(values, 1.0).astype(int).sum(axis=2)[0]
    assert total[0] < total[1] < total[2] < total[3] < total[4] == total[5]


def test_a_value_that_is_no_number_is_shown_as_hottest() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 9, 0]], np.float32)
    colors = heatmap(values, 1.0)[0]
    assert np.array_equal(colors[0], colors[3]) and np.array_equal(colors[1], colors[3])
    assert np.array_equal(colors[2], colors[4])


def test_overlay_leaves_a_clean_image_alone() -> None:
    image = picture(32, 48)
    assert np.array_equal(overlay(image, np.zeros((8, 12), np.float32), 0.5), image)


def test_overlay_outlines_the_crossing_and_the_mask() -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    hot = np.zeros((64, 64), np.float32)
    hot[10:20, 30:50] = 1.0
    mask = np.zeros((64, 64), np.bool_)
    mask[40:50, 5:15] = True
    before = image.copy()
    out = overlay(image, hot, 0.5, mask)
    assert out.shape == image.shape and np.array_equal(image, before)
    cyan = (out == (0, 255, 255)).all(axis=2)
    white = (out == 255).all(axis=2)
    assert cyan[10, 30:50].all() and cyan[19, 30:50].all() and not cyan[12:18, 32:48].any()
    assert white[40, 5:15].all() and not white[42:48, 7:13].any()
    below = overlay(image, hot, 1.01)
    assert not (below == (0, 255, 255)).all(axis=2).any()


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_without_a_scale_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        overlay(picture(), np.zeros((4, 4), np.float32), threshold)


# --- writing


@settings(max_examples=60)
@given(image=hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))))
def test_png_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, image: Image) -> None:
    path = tmp_path_factory.getbasetemp() / "round" / "x.png"
    write_png(path, image)
    assert np.array_equal(read_image(path), image)
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    """A file limit of 1 KiB stands for a full disk, in a process of its own."""
    path = tmp_path / "x.png"
    write_png(path, picture(4, 4))
    code = (
        "import resource, signal, sys; from pathlib import Path; import numpy as np\n"
        "from metal_edge.errors import OutputError\n"
        "from metal_edge.imaging import write_png\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)\n"
        "try: write_png(Path(sys.argv[1]), noise)\n"
        "except OutputError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    assert f"cannot write {path}" in run.stdout
    assert np.array_equal(read_image(path), picture(4, 4))
    assert list(tmp_path.iterdir()) == [path]


def test_a_destination_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_png(tmp_path / "file" / "x.png", picture())
