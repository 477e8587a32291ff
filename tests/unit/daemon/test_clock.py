"""Whether the wall clock was set: from two clocks, moved by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metal_edge.daemon.clock import STEP_NS, StepWatch

PASSING_NS = st.integers(1, 10**12)
NEAR_NS = st.integers(-STEP_NS + 1, STEP_NS - 1)
FAR_NS = st.integers(STEP_NS, 10**13) | st.integers(-(10**13), -STEP_NS)


@given(st.lists(st.tuples(PASSING_NS, NEAR_NS | FAR_NS), max_size=10))
def test_each_step_is_told_once_with_its_size_and_drift_never(
    looks: list[tuple[int, int]],
) -> None:
    watch, mono_ns, utc_ns = StepWatch(), 7 * 10**15, 10**18
    assert watch.look(mono_ns, utc_ns) is None, "nothing to compare with"
    for passed_ns, step_ns in looks:
        mono_ns, utc_ns = mono_ns + passed_ns, utc_ns + passed_ns + step_ns
        found_ns = watch.look(mono_ns, utc_ns)
        assert found_ns == (step_ns if abs(step_ns) >= STEP_NS else None)
