"""The count of exposures, against a camera whose losses the test knows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.cameras.exposures import MAX_GAP, ExposureCounter, Step

# What became of each exposure: a whole frame, one that never came, a torn one with its number.
FATES = st.lists(st.sampled_from(["whole", "lost", "torn"]), max_size=60)


@given(FATES, st.integers(0, 2**40))
def test_each_exposure_is_counted_once(fates: list[str], first: int) -> None:
    """From the first frame to the last one that came; before and after nobody can know."""
    came = [number for number, fate in enumerate(fates) if fate != "lost"]
    counter = ExposureCounter()
    steps = [counter.step(first + number) for number in came]
    assert not any(step.doubtful for step in steps)
    counted = sum(step.lost for step in steps) + len(came)
    assert counted == (came[-1] - came[0] + 1 if came else 0)


@given(st.lists(st.integers(0, 2**64), max_size=30))
def test_no_counter_costs_more_than_its_bound(seqs: list[int]) -> None:
    counter = ExposureCounter()
    for seq in seqs:
        step = counter.step(seq)
        assert 0 <= step.lost <= MAX_GAP
        assert not (step.doubtful and step.lost)


def test_a_step_that_is_not_forwards_or_too_far_is_doubtful_once() -> None:
    counter = ExposureCounter(max_gap=3)
    steps = [counter.step(seq) for seq in (10, 14, 14, 13, 18, 19)]
    assert steps == [Step(), Step(lost=3), *[Step(doubtful=True)] * 3, Step()]


def test_a_torn_frame_without_a_number_explains_one_gap() -> None:
    counter = ExposureCounter()
    steps = [counter.step(seq) for seq in (1, None, 3, None, 4, None, None, 8)]
    assert [step.lost for step in steps] == [0, 0, 0, 0, 0, 0, 0, 1]


def test_after_an_interruption_the_next_frame_is_doubtful_whatever_its_number() -> None:
    counter = ExposureCounter()
    counter.interrupted()
    assert counter.step(5) == Step()
    counter.interrupted()
    assert [counter.step(seq) for seq in (6, 7)] == [Step(doubtful=True), Step()]
