"""The mailbox between reading and deciding: order, overflow, and nothing older than a trigger."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.cameras import (
    CameraError,
    EndOfStreamError,
    FrameOverflowError,
    TornFrameError,
)
from metal_edge.daemon.cameras.mailbox import Mailbox
from metal_edge.domain import Frame


def frame(seq: int, t_ns: int = 0) -> Frame:
    return Frame(np.zeros((1, 1, 3), np.uint8), seq, "cam0", str(seq), t_ns, t_ns)


def drain(box: Mailbox) -> list[int | str]:
    """Numbers of the frames, `overflow` and `torn` for the faults, up to the first nothing."""
    out: list[int | str] = []
    while True:
        try:
            item = box.take(0)
        except FrameOverflowError:
            out.append("overflow")
        except TornFrameError:
            out.append("torn")
        else:
            if item is None:
                return out
            out.append(item.seq)


@given(steps=st.lists(st.sampled_from(["put", "take"]), max_size=60), places=st.integers(1, 4))
def test_every_exposure_is_there_in_order_or_its_loss_is_told_where_it_happened(
    steps: list[str], places: int
) -> None:
    box, seq, seen = Mailbox(places), 0, []
    for step in steps:
        if step == "put":
            seq += 1
            box.put(frame(seq), 0)
        else:
            try:
                item = box.take(0)
            except FrameOverflowError:
                seen.append("overflow")
            else:
                seen += [] if item is None else [item.seq]
    seen += drain(box)
    last = 0
    for place, item in enumerate(seen):
        if item == "overflow":
            assert seen[place - 1] != "overflow"
            later = [s for s in seen[place + 1 :] if s != "overflow"]
            assert (later[0] if later else seq + 1) > last + 1  # something is missing right here
            continue
        assert item == last + 1 or seen[place - 1] == "overflow"
        last = item
    assert last == seq or seen[-1] == "overflow"


def test_what_waits_is_bounded() -> None:
    box = Mailbox(2)
    for seq in range(100):
        box.put(frame(seq), 0)
    assert drain(box) == [0, 1, "overflow"]


def test_without_places_the_newest_wins() -> None:
    box = Mailbox(None)
    for seq in range(5):
        box.put(frame(seq), 0)
    assert drain(box) == [4]


def test_a_torn_frame_takes_its_place_in_the_order() -> None:
    box = Mailbox(4)
    box.put(frame(1), 0)
    box.put(TornFrameError("half", "", 2), 0)
    box.put(frame(3), 0)
    assert drain(box) == [1, "torn", 3]


@given(
    times=st.lists(st.integers(0, 50), max_size=20),
    marks=st.lists(st.integers(0, 50), max_size=5),
    places=st.sampled_from([None, 30]),
)
def test_nothing_that_may_be_older_than_the_mark_is_ever_taken(
    times: list[int], marks: list[int], places: int | None
) -> None:
    box = Mailbox(places)
    mark = 0
    for number, t_ns in enumerate(times):
        if number < len(marks):
            mark = marks[number]
            box.refuse_before(mark)
        box.put(frame(number, t_ns), t_ns)
        taken = box.take(0)
        assert (taken is None) == (t_ns < mark)


def test_a_mark_forgets_what_waited() -> None:
    box = Mailbox(None)
    box.put(CameraError("of the last part"), 0)
    box.refuse_before(1)
    assert box.take(0) is None


def test_the_end_comes_after_the_last_frame_and_stays() -> None:
    box = Mailbox(None)
    box.put(frame(1), 0)
    box.end(EndOfStreamError("end"))
    assert box.take(0)
    for _ in range(2):
        with pytest.raises(EndOfStreamError):
            box.take(0)


def test_who_waits_is_woken_by_a_frame() -> None:
    box = Mailbox(None)
    seen: list[Frame | None] = []
    waiter = threading.Thread(target=lambda: seen.append(box.take(30)))
    waiter.start()
    box.put(frame(7), 0)
    waiter.join(10)
    assert seen and seen[0] is not None and seen[0].seq == 7
