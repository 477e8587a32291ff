"""Engines are loaded once, taken in turns, in order, and freed by their last user."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.broker import wait_until
from support.tiny_bundle import build_bundle, probe

from metal_edge.bundle import Bundle
from metal_edge.domain import Inspection
from metal_edge.errors import UnavailableError
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.shared import Engines, FairLock

LINES = 5


@settings(max_examples=40)
@given(st.lists(st.one_of(st.just("done"), st.integers(0, LINES - 1)), max_size=30))
def test_nobody_waits_for_more_than_one_turn_of_each_other(steps: list[str | int]) -> None:
    """Lines ask in any order and let go; real threads, one step at a time.

    First come, first served among n lines is the same as: after at most n - 1 turns of others.
    """
    lock, turns = FairLock(), []
    may_go = [threading.Semaphore(0) for _ in range(LINES)]
    line_up: list[tuple[int, threading.Thread]] = []  # whoever is at it, then who waits

    def use(line: int) -> None:
        with lock:
            turns.append(line)
            may_go[line].acquire()

    def serves(line: int, turn: int) -> None:
        wait_until(lambda: len(turns) == turn, f"turn {turn}")
        assert turns[-1] == line

    served = 0
    for step in [*steps, *["done"] * LINES]:
        if step == "done" and line_up:
            line, thread = line_up.pop(0)
            may_go[line].release()
            thread.join(5)
        elif isinstance(step, int) and step not in [line for line, _ in line_up]:
            thread = threading.Thread(target=use, args=(step,))
            thread.start()
            line_up.append((step, thread))
            waiting = len(line_up) - 1
            wait_until(lambda waiting=waiting: lock.waiting == waiting, "a place in the line-up")
        else:
            continue
        if line_up and (step == "done" or len(line_up) == 1):
            served += 1
            serves(line_up[0][0], served)
    assert lock.waiting == 0
    assert not line_up


class Loads:
    """Counts what is loaded, with real runners."""

    def __init__(self) -> None:
        self.count = 0
        self.fail = False
        self._another = threading.Event()

    def __call__(self, bundle: Bundle, threads: int) -> Runner:
        self.count += 1
        if self.count > 1:
            self._another.set()
        self._another.wait(0.1)  # the time that a second load would need to begin
        if self.fail:
            raise UnavailableError("no engine", "find one")
        return load_runner(bundle, threads)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(build_bundle(tmp_path / "bundle"))


def test_one_engine_for_all_users_of_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    loads = Loads()
    engines = Engines(loads)
    first, second = engines.open(bundle, 1), engines.open(bundle, 1)
    other = engines.open(Bundle.open(build_bundle(tmp_path / "other", threshold=0.6)), 1)
    assert loads.count == 2
    first.close()
    first.close()  # a second time is no second share
    assert second.run(probe(51))[0].score == pytest.approx(0.2)
    second.close()
    engines.open(bundle, 1).close()
    assert loads.count == 3  # the last user had freed it
    other.close()


def test_a_copy_elsewhere_is_the_same_bundle(bundle: Bundle, tmp_path: Path) -> None:
    loads = Loads()
    engines = Engines(loads)
    shares = [engines.open(bundle, 1), engines.open(Bundle.open(build_bundle(tmp_path / "b")), 1)]
    assert loads.count == 1
    for share in shares:
        share.close()


def test_a_failed_load_can_be_tried_again(bundle: Bundle) -> None:
    loads = Loads()
    engines = Engines(loads)
    loads.fail = True
    with pytest.raises(UnavailableError):
        engines.open(bundle, 1)
    loads.fail = False
    with engines.open(bundle, 1) as runner:
        assert np.isfinite(runner.run(probe(0))[0].score)


def test_lines_that_start_together_load_once(bundle: Bundle) -> None:
    loads = Loads()
    engines = Engines(loads)
    shares = []
    threads = [
        threading.Thread(target=lambda: shares.append(engines.open(bundle, 1))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert loads.count == 1
    assert len(shares) == 4


class Slow:
    """A runner that is at it until `go` is set; one that is freed meanwhile would crash."""

    input_shape = (8, 8, 3)

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.closed = self.closed_inside = False

    def run(self, images: Any) -> list[Inspection]:
        self.inside.set()
        self.go.wait(10)
        self.closed_inside = self.closed
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.closed = True


def test_an_engine_is_not_freed_while_somebody_is_at_it(bundle: Bundle) -> None:
    """A golden check may be under way when a recipe is taken out of service."""
    slow = Slow()
    share = Engines(lambda bundle, threads: slow).open(bundle, 1)
    user = threading.Thread(target=lambda: share.run(probe(0)))
    user.start()
    assert slow.inside.wait(5)
    freeing = threading.Thread(target=share.close)
    freeing.start()
    freeing.join(0.1)
    assert not slow.closed
    slow.go.set()
    user.join(5)
    freeing.join(5)
    assert slow.closed and not slow.closed_inside


def test_a_share_that_was_given_back_gives_nothing(bundle: Bundle) -> None:
    """Another user keeps the engine; who gave up a share must not go on with it."""
    engines = Engines()
    mine, other = engines.open(bundle, 1), engines.open(bundle, 1)
    mine.close()
    with pytest.raises(UnavailableError, match="closed"):
        mine.run(probe(0))
    assert other.run(probe(51))[0].score == pytest.approx(0.2)
    other.close()
