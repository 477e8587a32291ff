"""Which bundle is older, and which model may follow which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metal_edge.bundle import Manifest
from metal_edge.daemon.changeover.versions import is_older
from metal_edge.domain import Preprocess


def manifest(version: str, created: str = "2026-01-01T00:00:00Z") -> Manifest:
    return Manifest(
        name="bottle",
        version=version,
        created_utc=created,
        model={},
        precision="fp32",
        backend="onnxruntime",
        preprocess=Preprocess(None, None, 32, 32),
        files={},
    )


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1", "2"), ("1.9", "1.10"), ("v1.2", "1.3"), ("2", "2.0.1"), ("2025-12-31", "2026-01-01")],
)
def test_numbers_count_as_numbers(older: str, newer: str) -> None:
    assert is_older(manifest(older), manifest(newer))
    assert not is_older(manifest(newer), manifest(older))


@pytest.mark.parametrize(("one", "other"), [("1", "1.0"), ("blue", "green"), ("1", "1-rc1")])
def test_where_versions_say_nothing_time_does(one: str, other: str) -> None:
    early, late = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    assert is_older(manifest(one, early), manifest(other, late))
    assert not is_older(manifest(one, late), manifest(other, early))


VERSIONS = st.one_of(st.from_regex(r"v?\d{1,3}([.-]\d{1,3}){0,3}", fullmatch=True), st.text())
DAYS = st.integers(1, 28).map(lambda day: f"2026-01-{day:02}T00:00:00Z")


@given(VERSIONS, DAYS, VERSIONS, DAYS)
def test_no_two_bundles_are_each_older_than_the_other(
    one: str, one_day: str, other: str, other_day: str
) -> None:
    a, b = manifest(one, one_day), manifest(other, other_day)
    assert not (is_older(a, b) and is_older(b, a))
    assert not is_older(a, a)
