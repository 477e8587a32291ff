"""The demo's closing figures, from gate logs written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.demo.summary import as_text, summarise


def line(part: str, gate: str, **changes: Any) -> dict[str, Any]:
    values = {
        "part_id": part,
        "gate": gate,
        "cause": "pass_verdict" if gate == "pass" else "reject_verdict",
        "verdict": gate,
        "score": 0.5 if gate == "pass" else 2.0,
        "threshold": 1.0,
        "latency_ms": 10.0,
        "margin_ms": 50.0,
    }
    return values | changes


def truth(part: str) -> str | None:
    return "dent" if part.startswith("bad") else None


def test_counts_by_hand() -> None:
    log = [
        line("good-1", "pass"),
        line("good-2", "reject"),
        line("good-3", "reject", verdict="unknown", cause="unknown_verdict", latency_ms=30.0),
        line("bad-1", "reject"),
        line("bad-2", "pass"),
        line("bad-3", "reject", verdict=None, latency_ms=None, margin_ms=None, cause="no_decision"),
    ]
    s = summarise(log, truth)
    assert (s.parts, s.good, s.defective, s.passed, s.rejected) == (6, 3, 3, 2, 4)
    assert (s.overkill, s.escapes, s.unknown, s.no_verdict, s.unproven) == (2, 1, 1, 1, 0)
    assert s.escapes_by_defect == {"dent": (1, 3)}
    assert s.latency_p50_ms == 10.0
    text = as_text(s)
    assert "1 of 3 defective parts let through (33.3 %)" in text
    assert "by defect           dent 1 of 3" in text


@pytest.mark.parametrize(
    "fault",
    [
        {"verdict": None},
        {"verdict": "unknown"},
        {"verdict": "reject"},
        {"score": None},
        {"score": 1.0},
        {"score": 3.0},
        {"threshold": None},
        {"margin_ms": -0.1},
        {"margin_ms": None},
    ],
)
def test_a_part_let_through_without_a_pass_in_time_is_found(fault: dict[str, Any]) -> None:
    """The judge does not trust the gate: it looks at the logged evidence again."""
    assert summarise([line("bad-1", "pass", **fault)], truth).unproven == 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_every_part_is_counted_once(parts: list[tuple[bool, bool]]) -> None:
    log = [
        line(f"{'good' if good else 'bad'}-{i}", "pass" if passed else "reject")
        for i, (good, passed) in enumerate(parts)
    ]
    s = summarise(log, truth)
    assert s.passed + s.rejected == s.good + s.defective == s.parts == len(parts)
    assert s.passed == (s.good - s.overkill) + s.escapes
