"""The choice of calibration frames, and the warning of frames that come from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metal_edge.quantize.calibration import CalibrationMethod, Range
from metal_edge.quantize.frames import (
    SHIFT_LIMIT,
    choose_frames,
    distribution_shift,
    frame_statistics,
)
from metal_edge.quantize.record import FrameRecord, calibration_record, staged_record


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_each_frame_once_extremes_included_order_irrelevant(
    total: int, count: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    statistics = random.uniform(0, 255, (total, 5))
    chosen = choose_frames(statistics, count)
    indices = [frame.index for frame in chosen]
    assert len(set(indices)) == len(indices) == min(total, count)
    assert all(frame.reason for frame in chosen)
    order = random.permutation(total)
    again = choose_frames(statistics[order], count)
    assert {int(order[frame.index]) for frame in again} == set(indices)
    if count >= 6:
        brightness = statistics[:, :3].mean(axis=1)
        assert {int(brightness.argmin()), int(brightness.argmax())} <= set(indices)
        assert {int(statistics[:, 4].argmin()), int(statistics[:, 4].argmax())} <= set(indices)


def test_statistics_by_hand() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :, 2:, 0] = 30  # red in the right half: grey 10 there
    red, green, blue, contrast, detail = frame_statistics(image)[0]
    assert (red, green, blue) == (15, 0, 0)
    assert contrast == pytest.approx(5)
    assert detail == pytest.approx((0 + 10 * 4 / 12) / 2)


def test_pictures_of_another_place_are_told_from_the_same() -> None:
    random = np.random.default_rng(0)
    training = random.normal(100, 5, (200, 5))
    same = random.normal(100, 5, (32, 5))
    assert distribution_shift(same, training)[0] < SHIFT_LIMIT
    elsewhere = same.copy()
    elsewhere[:, 3] += 40
    shift, where = distribution_shift(elsewhere, training)
    assert shift > SHIFT_LIMIT
    assert where == "contrast"
    few = np.concatenate([same[:24], elsewhere[:8]])
    assert distribution_shift(few, training)[0] > SHIFT_LIMIT


def test_a_steady_line_may_vary_by_a_grey_level() -> None:
    training = np.full((50, 5), 100.0)
    assert distribution_shift(training + 0.9, training)[0] < SHIFT_LIMIT
    assert distribution_shift(training + 5.0, training)[0] > SHIFT_LIMIT


def test_the_record_is_stable_text_without_images(tmp_path: Path) -> None:
    frames = [FrameRecord(f"{i:064x}", f"{i + 9:064x}", f"reason {i}") for i in range(3)]

    def text(order: int) -> str:
        record = calibration_record(
            run="r",
            model_sha256="m",
            method=CalibrationMethod.ENTROPY,
            frames=frames[::order],
            shift=1.0000001,
            ranges=dict(list({"b": Range(-1, 2), "a": Range(0, 0)}.items())[::order]),
            zero_range=("n",),
            results={"accuracy": {"image_auroc": 0.9}},
        )
        with staged_record(tmp_path / "line1", record) as path:
            pass
        return path.read_text(encoding="utf-8")

    first = text(1)
    assert text(-1) == first
    content = json.loads(first)
    assert content["tensors"]["b"] == {
        "low": -1.0,
        "high": 2.0,
        "scale": pytest.approx(3 / 255, rel=1e-5),
        "zero_point": 85,
    }
    assert content["tensors"]["a"]["scale"] is None
    assert content["frames"][0] == {
        "sha256": f"{0:064x}",
        "pixels_sha256": f"{9:064x}",
        "reason": "reason 0",
    }
    assert [p.name for p in (tmp_path / "line1").iterdir()] == ["calibration.json"]


def test_the_record_appears_with_what_it_speaks_of_or_not_at_all(tmp_path: Path) -> None:
    with staged_record(tmp_path, {"of": "the old bundle"}) as path:
        assert not path.exists()
    before = path.read_bytes()
    with pytest.raises(RuntimeError), staged_record(tmp_path, {"of": "a new one"}):
        raise RuntimeError("no bundle")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_scales_for_tensorrt_are_symmetric() -> None:
    record = calibration_record(
        run="r",
        model_sha256="m",
        method=CalibrationMethod.MINMAX,
        frames=(),
        shift=1.0,
        ranges={"a": Range(-1, 2), "b": Range(0, 0)},
        zero_range=(),
        results={},
        symmetric=True,
    )
    assert record["tensors"]["a"] == {
        "low": -1.0, "high": 2.0, "scale": pytest.approx(2 / 127, rel=1e-5), "zero_point": 0,
    }  # fmt: skip
    assert record["tensors"]["b"]["scale"] is None
