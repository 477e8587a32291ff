"""The ring: what was appended and not released is found again, whatever happened in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metal_edge.daemon.records.journal import SLOT, Journal, _scan

SLOTS = 8


def test_records_are_found_again_in_order_with_what_they_said(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "ring", SLOTS)
    payloads = [b"", b"short", os.urandom(SLOT), os.urandom(2 * SLOT)]
    numbers = [journal.append(f"é{n}", payload) for n, payload in enumerate(payloads)]
    journal.close()
    found = Journal.open(tmp_path / "ring", SLOTS).recovered
    assert [record.seq for record in found] == numbers
    assert [record.payload for record in found] == payloads
    assert [record.event_id for record in found] == ["é0", "é1", "é2", "é3"]


def test_a_full_ring_refuses_and_overwrites_nothing(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "ring", SLOTS)
    for number in range(SLOTS):
        assert journal.append(str(number), b"x") is not None
    assert journal.append("one too many", b"x") is None
    journal.release(2)
    assert journal.append("two slots", bytes(SLOT)) is not None
    assert journal.append("none left", b"x") is None
    journal.close()
    names = [record.event_id for record in Journal.open(tmp_path / "ring", SLOTS).recovered]
    assert names == [*"234567", "two slots"]


def test_a_record_that_was_cut_off_is_left_out_and_its_place_is_used_again(tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    journal = Journal.open(ring, SLOTS)
    for name in ("a", "b"):
        journal.append(name, os.urandom(2 * SLOT))
    journal.close()
    with ring.open("r+b") as file:  # as a process leaves it that dies between two pages
        file.seek(4 * SLOT)
        file.write(bytes(SLOT))
    journal = Journal.open(ring, SLOTS)
    assert [record.event_id for record in journal.recovered] == ["a"]
    journal.append("c", b"x")
    journal.close()
    assert [record.event_id for record in Journal.open(ring, SLOTS).recovered] == ["a", "c"]


def test_a_file_of_another_size_is_begun_anew_under_another_name(tmp_path: Path) -> None:
    ring = tmp_path / "ring"
    journal = Journal.open(ring, SLOTS)
    journal.append("a", b"x")
    journal.close()
    other = Journal.open(ring, SLOTS + 1)
    assert other.recovered == []
    assert other.ring_id != journal.ring_id
    assert ring.stat().st_size == (SLOTS + 1) * SLOT


def test_one_ring_has_one_owner(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "ring", SLOTS)
    with pytest.raises(BlockingIOError):
        Journal.open(tmp_path / "ring", SLOTS)
    journal.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from([0, 10, SLOT, 2 * SLOT])),
        st.tuples(st.just("release"), st.integers(1, 4)),
        st.tuples(st.just("reopen"), st.just(0)),
    ),
    min_size=10,
    max_size=60,
)


@given(steps=STEPS)
@settings(max_examples=100)
def test_whatever_happens_nothing_held_is_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Against a plain list: held records come back unchanged and in order; none is invented."""
    ring = tmp_path_factory.mktemp("ring") / "ring"
    journal = Journal.open(ring, SLOTS)
    held: list[tuple[int, bytes]] = []
    ever: set[tuple[int, bytes]] = set()
    for what, number in [*steps, ("reopen", 0)]:
        if what == "append":
            payload = bytes([len(ever) % 251]) * number
            seq = journal.append("e", payload)
            if seq is not None:
                held.append((seq, payload))
                ever.add((seq, payload))
            assert set(held) <= set(on_disk(ring)), "overwritten"
        elif what == "release" and held:
            gone, held = held[:number], held[number:]
            journal.release(gone[-1][0])
        elif what == "reopen":
            journal.close()
            journal = Journal.open(ring, SLOTS)
            found = [(record.seq, record.payload) for record in journal.recovered]
            assert found[len(found) - len(held) :] == held
            assert set(found) <= ever
            assert sorted(found) == found
            held = found  # those released last are not known to be: they are held again
    journal.close()


def on_disk(ring: Path) -> list[tuple[int, bytes]]:
    """What a crash at this moment would leave, whether it was released or not."""
    found = _scan(ring.read_bytes(), SLOTS)
    return [(at.record.seq, at.record.payload) for at in found]
