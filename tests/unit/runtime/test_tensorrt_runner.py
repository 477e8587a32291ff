"""The TensorRT runner's buffers, stream and graphs, against a GPU of NumPy arrays."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.fake_cuda import FakeCuda, FakeEngine, brightness

from metal_edge.errors import BundleError, UnavailableError
from metal_edge.runtime.tensorrt_runner import (
    MAP,
    SCORE,
    TensorRtRunner,
    TensorSpec,
    check_tensors,
)

SIDE = 8


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def session(cuda: FakeCuda, engine: FakeEngine) -> list[float]:
    """Three batches of two sizes; every score that was given out, in order."""
    scores: list[float] = []
    with TensorRtRunner(engine, cuda) as runner:
        for seed, count in enumerate((1, 2, 1)):
            scores += [inspection.score for inspection in runner.run(pictures(count, seed))]
    return scores


@settings(max_examples=40)
@given(batches=st.lists(st.integers(0, 8), min_size=1, max_size=5), largest=st.integers(1, 4))
def test_any_batches_give_what_their_images_give(batches: list[int], largest: int) -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, SIDE, largest)
    with TensorRtRunner(engine, cuda) as runner:
        for seed, count in enumerate(batches):
            images = pictures(count, seed)
            maps, scores = brightness(images)
            got = runner.run(images)
            assert [i.score for i in got] == scores.tolist()
            for inspection, expected in zip(got, maps, strict=True):
                np.testing.assert_array_equal(inspection.anomaly_map, expected)
    assert not cuda.live
    assert len(engine.prepared) == len(set(engine.prepared)), "a batch size prepared twice"
    assert max(engine.prepared, default=1) <= largest


def test_frames_allocate_nothing_and_capture_once_per_batch_size() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, SIDE)
    with TensorRtRunner(engine, cuda) as runner:
        for count in (1, 2):
            runner.run(pictures(count))
        before, live = cuda.allocations(), dict(cuda.live)
        launches = cuda.calls["launch"]
        for seed in range(10):
            runner.run(pictures(1, seed))
            runner.run(pictures(2, seed))
        assert cuda.allocations() == before
        assert cuda.live == live
        assert cuda.calls["launch"] == launches + 20
        assert cuda.calls["begin_capture"] == 2
        assert engine.prepared == [1, 2]


def test_nothing_changes_an_answer_any_more() -> None:
    """Neither a hundred frames, nor who writes into another answer, nor the runner's end."""
    cuda = FakeCuda()
    answers, expected = [], []
    with TensorRtRunner(FakeEngine(cuda, SIDE), cuda) as runner:
        for seed in range(100):
            images = pictures(1 + seed % 3, seed)
            answers += runner.run(images)
            expected += list(brightness(images)[0])
            answers[-1].anomaly_map.fill(-1)
            expected[-1].fill(-1)
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.anomaly_map, wanted)


def test_all_that_a_frame_allocates_is_its_answer() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, 256)
    image = np.zeros((1, 256, 256, 3), np.uint8)
    with TensorRtRunner(engine, cuda) as runner:
        answer = runner.run(image)
        engine.silent = {MAP, SCORE}  # what the stand-in calculates with is not the runner's
        tracemalloc.start()
        try:
            for _ in range(5):
                before, _ = tracemalloc.get_traced_memory()
                tracemalloc.reset_peak()
                answer = runner.run(image)
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before < answer[0].anomaly_map.nbytes + 16_384
        finally:
            tracemalloc.stop()


def test_everything_is_freed_once() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, SIDE)
    with TensorRtRunner(engine, cuda) as runner:
        runner.run(pictures(3))
    runner.close()  # again, which does nothing
    assert not cuda.live
    assert (engine.closed, engine.executions, cuda.closed) == (1, 0, 1)
    for allocate, free in (
        ("allocate_host", "free_host"),
        ("allocate_device", "free_device"),
        ("create_stream", "destroy_stream"),
        ("end_capture", "destroy_graph"),
    ):
        assert cuda.calls[allocate] == cuda.calls[free] > 0
    with pytest.raises(UnavailableError, match="closed"):
        runner.run(pictures(1))


def test_an_error_of_the_caller_frees_everything_too() -> None:
    cuda = FakeCuda()
    with pytest.raises(ZeroDivisionError), TensorRtRunner(FakeEngine(cuda, SIDE), cuda) as runner:
        runner.run(pictures(1))
        raise ZeroDivisionError
    assert not cuda.live
    assert cuda.closed == 1


def calls_of_a_session() -> list[tuple[str, int]]:
    cuda = FakeCuda()
    session(cuda, FakeEngine(cuda, SIDE))
    frees = {"free_host", "free_device", "destroy_stream", "destroy_graph"}
    # The last time the device is made current is for freeing.
    counts = Counter({"current": cuda.calls["current"] - 1})
    counts |= Counter({k: n for k, n in cuda.calls.items() if k not in {*frees, "current"}})
    return [(name, n + 1) for name in sorted(counts) for n in range(counts[name])]


@pytest.mark.parametrize("fail", calls_of_a_session(), ids=lambda f: f"{f[0]}-{f[1]}")
def test_whatever_fails_gives_no_score_and_leaves_nothing(fail: tuple[str, int]) -> None:
    cuda = FakeCuda(fail)
    engine = FakeEngine(cuda, SIDE)
    with pytest.raises(UnavailableError, match="as planned"):
        session(cuda, engine)
    assert not cuda.live
    assert (engine.closed, engine.executions, cuda.closed) == (1, 0, 1)


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_network_that_cannot_be_queued_leaves_nothing(call: int) -> None:
    """Calls 1 and 3 are the first execution of a batch size, 2 and 4 its capture."""
    cuda = FakeCuda()
    engine = FakeEngine(cuda, SIDE)
    engine.fail_enqueue = call
    with pytest.raises(UnavailableError, match="as planned"):
        session(cuda, engine)
    assert (engine.closed, engine.executions, cuda.closed) == (1, 0, 1)


def test_a_batch_size_that_failed_is_prepared_again() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, SIDE)
    engine.fail_enqueue = 2  # within the capture
    with TensorRtRunner(engine, cuda) as runner:
        before = dict(cuda.live)
        with pytest.raises(UnavailableError):
            runner.run(pictures(1, 1))
        assert cuda.live == before
        assert engine.executions == 0
        assert runner.run(pictures(1, 2))[0].score == brightness(pictures(1, 2))[1][0]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_silent_failure_gives_nan_and_not_the_last_score(batch: int) -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, SIDE)
    with TensorRtRunner(engine, cuda) as runner:
        assert all(math.isfinite(i.score) for i in runner.run(pictures(batch, 1)))
        engine.silent = {MAP, SCORE}
        assert all(math.isnan(i.score) for i in runner.run(pictures(batch, 2)))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_map_that_was_left_out_is_not_the_last_one(batch: int) -> None:
    """A good part's map, met again under another part's score, would let that part pass."""
    cuda = FakeCuda()
    engine = FakeEngine(cuda, SIDE)
    with TensorRtRunner(engine, cuda) as runner:
        assert all(np.isfinite(i.anomaly_map).all() for i in runner.run(pictures(batch, 1)))
        engine.silent = {MAP}
        answers = runner.run(pictures(batch, 2))
    assert all(np.isnan(i.anomaly_map).any() for i in answers)
    assert all(math.isfinite(i.score) for i in answers)


def test_a_free_that_fails_does_not_keep_the_rest() -> None:
    cuda = FakeCuda(("free_device", 2))
    engine = FakeEngine(cuda, SIDE)
    cuda.close = lambda: None  # type: ignore[method-assign]  # it would object to the leak
    with pytest.raises(UnavailableError, match="free_device fails"):
        session(cuda, engine)
    assert [kind for kind, _ in cuda.live] == ["device"]


def test_wrong_images_are_refused_before_anything_is_queued() -> None:
    cuda = FakeCuda()
    with TensorRtRunner(FakeEngine(cuda, SIDE), cuda) as runner:
        for images in (pictures(1)[:, :4], pictures(1).astype(np.float32), pictures(1)[0]):
            with pytest.raises(ValueError, match="images must be"):
                runner.run(images)  # type: ignore[arg-type]
        assert cuda.calls["launch"] == 0


GOOD = FakeEngine(FakeCuda(), SIDE).tensors


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (GOOD[:2], "no tensor score"),
        ([*GOOD, TensorSpec("other", False, "float32", (-1,))], "unknown tensor other"),
        ([replace(GOOD[0], dtype="float32"), *GOOD[1:]], "image is an input float32"),
        ([replace(GOOD[0], shape=(-1, 8, 8, 4)), *GOOD[1:]], "4 channels"),
        ([replace(GOOD[0], shape=(-1, -1, 8, 3)), *GOOD[1:]], "image is an input uint8"),
        ([GOOD[0], replace(GOOD[1], dtype="float16"), GOOD[2]], "anomaly_map is an output float16"),
        ([*GOOD[:2], replace(GOOD[2], is_input=True)], "score is an input"),
        ([*GOOD[:2], replace(GOOD[2], shape=(-1, 1))], "score is an output"),
        ([replace(t, shape=(4, *t.shape[1:])) for t in GOOD], "neither free nor 1"),
    ],
)
def test_a_foreign_plan_is_refused(tensors: list[TensorSpec], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        check_tensors(tensors, "plan x")


def test_a_foreign_plan_is_closed() -> None:
    cuda = FakeCuda()

    class Foreign(FakeEngine):
        @property
        def tensors(self) -> list[TensorSpec]:
            return GOOD[:2]

    engine = Foreign(cuda, SIDE)
    with pytest.raises(BundleError):
        TensorRtRunner(engine, cuda)
    assert (engine.closed, cuda.closed) == (1, 1)
