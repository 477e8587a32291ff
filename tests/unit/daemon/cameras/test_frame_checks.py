"""Pictures that prove nothing are found, and none that could be a part's is blamed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from metal_edge.daemon.cameras.frame_checks import RING, FrameChecks
from metal_edge.daemon.deciding.decision import Reason
from metal_edge.domain import Image
from metal_edge.settings import FrameCheckSettings


def checks(live: bool = True, **settings: Any) -> FrameChecks:
    return FrameChecks(FrameCheckSettings(**settings), live)


def pictures(low: int = 0, high: int = 255) -> st.SearchStrategy[Image]:
    shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))
    return arrays(np.uint8, shapes, elements=st.integers(low, high))


def plain(level: int, size: tuple[int, int] = (64, 80)) -> Image:
    return np.full((*size, 3), level, np.uint8)


@given(image=pictures(high=8))
def test_no_picture_without_a_bright_pixel_slips_by(image: Image) -> None:
    assert checks(live=False).fault(image) is Reason.BLACK_FRAME


@given(image=pictures(), level=st.integers(1, 254), share=st.floats(0.01, 0.99))
def test_every_picture_is_held_against_both_limits(image: Image, level: int, share: float) -> None:
    """The limits in plain words, pixel by pixel; small pictures are counted whole."""
    pixels = [max(pixel) for row in image.tolist() for pixel in row]
    found = checks(live=False, black_level=level, saturated_share=share).fault(image)
    if sum(pixel > level for pixel in pixels) <= 0.001 * len(pixels):
        assert found is Reason.BLACK_FRAME
    elif sum(pixel == 255 for pixel in pixels) / len(pixels) > share:
        assert found is Reason.SATURATED_FRAME
    else:
        assert found is None


@pytest.mark.parametrize("size", [(64, 80), (1200, 1601)])
@pytest.mark.parametrize(
    ("level", "reason"), [(0, Reason.BLACK_FRAME), (255, Reason.SATURATED_FRAME)]
)
def test_hot_and_dead_pixels_do_not_hide_it(
    size: tuple[int, int], level: int, reason: Reason
) -> None:
    image = plain(level, size)
    spots = np.random.default_rng(1).random(size) < 0.0002
    image[spots] = 255 - level
    assert checks(live=False).fault(image) is reason


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_channel_decides(channel: int) -> None:
    """Under red light the other channels are dark; when red clips, nothing is left to see."""
    image = plain(0)
    image[..., channel] = 100
    assert checks(live=False).fault(image) is None
    image[..., channel] = 255
    assert checks(live=False).fault(image) is Reason.SATURATED_FRAME


@pytest.mark.parametrize("size", [(100, 100), (1500, 2000)])
def test_a_small_part_on_a_black_belt_is_a_picture(size: tuple[int, int]) -> None:
    image = plain(0, size)
    image[: size[0] // 10, : size[1] // 10] = 90
    assert checks(live=False).fault(image) is None


def test_checks_can_be_switched_off() -> None:
    off = checks(black_level=0, saturated_share=1.0, frozen_after=0)
    for image in (plain(0), plain(0), plain(255), plain(255)):
        assert off.fault(image) is None


@given(
    images=st.lists(pictures(30, 200), min_size=1, max_size=4, unique_by=lambda i: i.tobytes()),
    order=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    limit=st.integers(1, 4),
)
def test_pictures_that_come_round_again_so_many_times_are_frozen(
    images: list[Image], order: list[int], limit: int
) -> None:
    """In plain words: for some lag, each of the last pictures is the one so many before it."""
    frozen = checks(frozen_after=limit)
    shown = [index % len(images) for index in order]
    for count, index in enumerate(shown, 1):
        # A copy each: equal pixels make it frozen, not the same array.
        found = frozen.fault(images[index].copy())
        again = [
            all(place >= lag and shown[place] == shown[place - lag] for place in last)
            for lag in range(1, RING + 1)
            for last in [range(count - (limit - 1), count)]
        ]
        assert (found is Reason.FROZEN_FRAME) == (count >= limit and any(again))


@pytest.mark.parametrize("buffers", [1, 2, 4, 10, RING])
def test_a_driver_that_hands_out_its_old_buffers_in_turn_is_found(buffers: int) -> None:
    """Each differs from the one before it, and none shows the part that stands there."""
    live = checks()
    ring = [plain(60 + number) for number in range(buffers)]
    assert [live.fault(image) for image in ring] == [None] * buffers
    assert [live.fault(image) for image in ring] == [Reason.FROZEN_FRAME] * buffers


@given(image=pictures(30, 200), data=st.data())
def test_one_changed_value_anywhere_is_another_picture(image: Image, data: st.DataObject) -> None:
    moving = checks()
    assert moving.fault(image) is None
    place = data.draw(st.integers(0, image.size - 1))
    image.reshape(-1)[place] ^= 1  # in the same memory, as drivers do
    assert moving.fault(image) is None


def test_the_same_bytes_in_another_shape_are_another_picture() -> None:
    moving = checks()
    assert moving.fault(plain(50, (4, 6))) is None
    assert moving.fault(plain(50, (6, 4))) is None


@given(image=pictures(), times=st.integers(3, 5))
def test_a_live_camera_never_shows_the_same_thing_twice(image: Image, times: int) -> None:
    """Whatever the picture, from the second time on it has a fault."""
    live = checks()
    live.fault(image)
    assert {live.fault(image) for _ in range(times)} == {Reason.FROZEN_FRAME}


def test_files_may_repeat_themselves() -> None:
    file = checks(live=False)
    assert [file.fault(plain(60)) for _ in range(3)] == [None] * 3
