"""The emulation's halves against NumPy's, over every half and every boundary between two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.host_kernels import call

from tools.kernels import build

EVERY = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture(scope="module")
def library() -> Path:
    try:
        return build.host_library([Path(__file__).with_name("conversions.cpp")])
    except build.MissingToolError as error:
        pytest.skip(str(error))


def test_to_float_is_exact(library: Path) -> None:
    floats = np.zeros(EVERY.size, np.float32)
    call(library, "halves_to_floats", [EVERY, floats, EVERY.size])
    expected = EVERY.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    assert np.isnan(floats[nan]).all()
    assert np.array_equal(floats[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_to_half_rounds_to_nearest_even(library: Path) -> None:
    """Rounding is monotone, so what is right on both sides of each boundary is right between."""
    finite = np.sort(EVERY.view(np.float16)[np.isfinite(EVERY.view(np.float16))].astype(np.float32))
    ends = np.float32([65504, 65520, 65536, 1e38, np.inf])  # 65520: the first to become infinite
    points = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2, ends, -ends])
    below = np.nextafter(points, np.float32(-np.inf))
    above = np.nextafter(points, np.float32(np.inf))
    random = np.random.default_rng(0).integers(0, 2**32, 10**6, np.uint32).view(np.float32)
    floats = np.concatenate([points, below, above, random[~np.isnan(random)], [np.float32(-0.0)]])
    floats = floats.astype(np.float32)
    halves = np.zeros(floats.size, np.uint16)
    call(library, "floats_to_halves", [floats, halves, floats.size])
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16).view(np.uint16)
    assert np.array_equal(halves, expected)


def test_every_nan_becomes_nan(library: Path) -> None:
    patterns = np.array([0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0xFF800001], np.uint32)
    halves = np.zeros(patterns.size, np.uint16)
    call(library, "floats_to_halves", [patterns.view(np.float32), halves, patterns.size])
    assert halves.tolist() == [0x7FFF] * patterns.size  # the pattern that GPUs give


def test_pairs(library: Path) -> None:
    random = np.random.default_rng(1)
    pairs = random.normal(0, 100, (1000, 2)).astype(np.float32)
    packed = np.zeros(len(pairs), np.uint32)
    call(library, "pack_all", [pairs, packed, len(pairs)])
    expected = pairs.astype(np.float16)
    assert np.array_equal(packed.view(np.float16).reshape(-1, 2), expected)

    other = random.permutation(packed)
    difference = np.zeros_like(packed)
    call(library, "subtract_all", [packed, other, difference, len(packed)])
    expected = packed.view(np.float16) - other.view(np.float16)
    assert np.array_equal(difference.view(np.uint16), expected.view(np.uint16))
