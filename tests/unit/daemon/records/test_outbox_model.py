"""The durable outbox against a model in plain lists: at least once, whatever happens."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.outbox_by_hand import (
    HOUR_NS,
    HandClock,
    crashed,
    drain,
    end,
    open_outbox,
)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.just(0)),
        st.tuples(st.just("put"), st.integers(0, 3)),
        st.tuples(st.just("turn"), st.just(0)),
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("deliver"), st.integers(0, 3)),
        st.tuples(st.just("return"), st.integers(0, 3)),
        st.tuples(st.just("lost"), st.just(0)),
        st.tuples(st.just("crash"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("rival"), st.just(0)),
    ),
    max_size=40,
)


class Model:
    """What ought to be true, kept in plain lists beside the real thing."""

    def __init__(self, folder: Path) -> None:
        self.clock = HandClock()
        self.path = folder / "first" / "outbox.sqlite"
        self.outbox = open_outbox(self.path, self.clock)
        self.begun: list[str] = []
        self.waiting: list[str] = []  # put, not delivered
        self.taken: list[str] = []
        self.names = count()
        self.rival: sqlite3.Connection | None = None

    def step(self, what: str, number: int) -> None:
        if what == "begin":
            name = f"e{next(self.names)}"
            self.outbox.begin(name, f"{name} begun".encode())
            self.begun.append(name)
        elif what == "put" and self.begun:
            name = self.begun.pop(number % len(self.begun))
            self.outbox.put(name, name.encode())
            self.waiting.append(name)
        elif what == "turn":
            self.clock.mono += HOUR_NS // 1000
            self.outbox.turn()
        elif what == "take":
            batch = [event.event_id for event in self.outbox.next_batch(number)]
            assert not set(batch) & set(self.taken), "handed out twice"
            self.taken += batch
        elif what in ("deliver", "return") and self.taken:
            name = self.taken.pop(number % len(self.taken))
            if what == "deliver":
                self.outbox.delivered([name])
                self.waiting = [other for other in self.waiting if other != name]
            else:
                self.outbox.returned([name])
        elif what == "lost":
            self.outbox.returned(self.taken)
            self.taken = []
        elif what in ("crash", "restart"):
            self.restart(crash=what == "crash")
        elif what == "rival":
            self.toggle_rival()

    def restart(self, crash: bool) -> None:
        before, after = self.outbox, self.path
        if crash:
            after = crashed(self.path)
        if self.rival is not None:
            self.toggle_rival()
        end(before)
        self.path = after
        self.outbox = open_outbox(after, self.clock)
        # `put` comes no more for those; what `begin` said of them counts.
        self.waiting += self.begun
        self.begun, self.taken = [], []

    def toggle_rival(self) -> None:
        """Another program holds the file for a while: the disk is in trouble."""
        if self.rival is None:
            self.rival = sqlite3.connect(self.path, isolation_level=None)
            self.rival.execute("BEGIN IMMEDIATE")
        else:
            self.rival.execute("COMMIT")
            self.rival.close()
            self.rival = None


@given(steps=STEPS)
@settings(max_examples=40)
def test_at_least_once_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch_session: None,
    steps: list[tuple[str, int]],
) -> None:
    model = Model(tmp_path_factory.mktemp("model"))
    for what, number in steps:
        model.step(what, number)
        stats = model.outbox.stats()
        assert stats.dropped == 0
        assert stats.depth >= len(model.waiting) - len(model.begun)
    model.restart(crash=True)
    got = [event.decode().split(" ")[0] for event in drain(model.outbox)]
    assert set(model.waiting) <= set(got), "lost"
    assert len(got) == len(set(got)), "one life hands an event out once"
    assert model.outbox.stats().depth == 0
    end(model.outbox)


@pytest.fixture(scope="session")
def monkeypatch_session() -> Iterator[None]:
    """A rival is noticed at once instead of after a second of waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metal_edge.daemon.records.storage.BUSY_S", 0.0)
        yield
