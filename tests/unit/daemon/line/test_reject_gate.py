"""When it is too late for a part, and where it meets the gate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from metal_edge.daemon.line.reject_gate import make_trigger
from metal_edge.settings import GateSettings

MS = 1_000_000


@pytest.mark.parametrize(
    ("offset_ms", "margin_ms", "deadline_ms", "budget_ms"),
    [
        (None, 10, 500, 500),
        (1000, 10, 500, 500),
        (400, 10, 500, 390),
        (400, 0, 400, 400),
        (12, 10, 500, 2),
    ],
)
def test_the_earlier_of_deadline_and_gate_counts(
    offset_ms: float | None, margin_ms: float, deadline_ms: float, budget_ms: float
) -> None:
    gate = GateSettings(offset_ms=offset_ms, margin_ms=margin_ms)
    trigger = make_trigger("t", "p", 7 * MS, deadline_ms, gate)
    assert trigger.deadline_mono_ns == (7 + budget_ms) * MS


@given(
    st.floats(1, 60_000),
    st.none() | st.floats(1, 600_000),
    st.floats(0, 0.99),
    st.integers(0, 2**62),
)
def test_no_deadline_lies_behind_the_gates(
    deadline_ms: float, offset_ms: float | None, share: float, t_ns: int
) -> None:
    margin_ms = min(10_000.0, share * (offset_ms or 1000))
    gate = GateSettings(offset_ms=offset_ms, margin_ms=margin_ms)
    trigger = make_trigger("t", None, t_ns, deadline_ms, gate)
    assert trigger.deadline_mono_ns - t_ns <= round(deadline_ms * MS)
    if trigger.gate is not None and trigger.gate.t_mono_ns is not None:
        assert trigger.deadline_mono_ns <= trigger.gate.t_mono_ns - round(margin_ms * MS) + 1


@pytest.mark.parametrize(
    ("counts", "encoder", "expected"), [(1000, 50, 1050), (1000, None, None), (None, 50, None)]
)
def test_the_encoder_count_at_the_gate(
    counts: int | None, encoder: int | None, expected: int | None
) -> None:
    gate = GateSettings(offset_ms=100, encoder_counts=counts)
    made = make_trigger("t", "p", 0, 500, gate, encoder=encoder)
    assert made.gate is not None
    assert (made.gate.encoder_counts, made.gate.encoder) == (counts, expected)


def test_without_settings_there_is_no_gate() -> None:
    assert make_trigger("t", "p", 0, 500, GateSettings(), encoder=3).gate is None


def test_a_margin_that_leaves_no_time_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(ValidationError, match="margin_ms must be below offset_ms"):
        GateSettings(offset_ms=10, margin_ms=10)


def test_the_latest_exposure_counts_from_the_arrival_and_has_no_limit_unasked() -> None:
    made = make_trigger("t", "p", 7 * MS, 500, GateSettings(), max_exposure_delay_ms=80)
    assert made.expose_by_mono_ns == 87 * MS
    assert make_trigger("t", "p", 7 * MS, 500, GateSettings()).expose_by_mono_ns is None
