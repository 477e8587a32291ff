"""The witness: each thing that can be missing for a part to have been inspected."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metal_edge.demo.witness import Exposure, Life, Passage, Statement, uninspected

PASSAGE = Passage("P", "T", t_ns=100, gate_ns=500, passed=True, arrival_ns=200)
PICTURE = Exposure("f", "P", t_ns=110)
WORD = Statement("S", "T", "P", "pass", "f")
LIFE = Life("S", from_ns=50, until_ns=300)


def test_an_inspected_part_is_none_of_its_business() -> None:
    assert uninspected([PASSAGE], [PICTURE], [WORD, WORD], [LIFE]) == []


@pytest.mark.parametrize(
    ("passages", "pictures", "words", "lives", "why"),
    [
        ([PASSAGE], [PICTURE], [], [LIFE], "nobody heard"),
        ([PASSAGE], [PICTURE], [replace(WORD, trigger_id="T2")], [LIFE], "nobody heard"),
        ([PASSAGE], [PICTURE], [replace(WORD, verdict="reject")], [LIFE], "said reject"),
        ([PASSAGE], [PICTURE], [WORD, replace(WORD, verdict="unknown")], [LIFE], "said unknown"),
        ([PASSAGE], [PICTURE], [replace(WORD, part_id="Q")], [LIFE], "pass of Q"),
        ([replace(PASSAGE, arrival_ns=500)], [PICTURE], [WORD], [LIFE], "before the gate"),
        ([replace(PASSAGE, arrival_ns=None)], [PICTURE], [WORD], [LIFE], "before the gate"),
        ([PASSAGE], [PICTURE], [WORD], [], "did not run"),
        ([PASSAGE], [PICTURE], [WORD], [replace(LIFE, until_ns=99)], "did not run"),
        ([PASSAGE], [PICTURE], [WORD], [replace(LIFE, from_ns=101)], "did not run"),
        ([PASSAGE], [], [WORD], [LIFE], "never taken"),
        ([PASSAGE], [PICTURE], [replace(WORD, frame_id=None)], [LIFE], "never taken"),
        ([PASSAGE], [replace(PICTURE, shows="Q")], [WORD], [LIFE], "shows Q"),
        ([PASSAGE], [replace(PICTURE, shows=None)], [WORD], [LIFE], "shows nothing"),
        ([PASSAGE], [replace(PICTURE, t_ns=99)], [WORD], [LIFE], "older than the trigger"),
    ],
)
def test_what_is_missing_is_named(
    passages: list[Passage],
    pictures: list[Exposure],
    words: list[Statement],
    lives: list[Life],
    why: str,
) -> None:
    [found] = uninspected(passages, pictures, words, lives)
    assert found.part_id == "P"
    assert why in found.why


def test_a_rejected_part_needs_no_proof() -> None:
    rejected = replace(PASSAGE, passed=False)
    assert uninspected([rejected, replace(PASSAGE, passed=None)], [], [], []) == []
