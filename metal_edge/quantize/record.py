"""The evidence of a calibration as text that a person can review as a diff; no images.

One file, `calibration.json`, of sorted keys and rounded numbers, in a folder per line, for
example `calibration/line1/`. The same build writes the same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metal_edge.files import atomic_file
from metal_edge.quantize.calibration import CalibrationMethod, Range

RECORD = "calibration.json"
_LEVELS = 255
_SYMMETRIC_LEVELS = 127


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """A calibration frame: SHA-256 of its file, of its pixels at the model's size, the reason."""

    sha256: str
    pixels_sha256: str
    reason: str


def calibration_record(
    *,
    run: str,
    model_sha256: str,
    method: CalibrationMethod,
    frames: Sequence[FrameRecord],
    shift: float,
    ranges: Mapping[str, Range],
    zero_range: Sequence[str],
    results: Mapping[str, Any],
    symmetric: bool = False,
) -> dict[str, Any]:
    """The record's content.

    Args:
        run: fingerprint of the training run.
        model_sha256: of the FP32 graph that was calibrated.
        frames: what calibrated, in any order.
        shift: see `distribution_shift`.
        ranges: per tensor.
        zero_range: nodes that stay FP32 since their tensors are always 0.
        results: JSON values: the sweep, accuracy, parity, threshold.
        symmetric: scales are of signed values with zero point 0, as TensorRT wants them; before
            they are rounded to float16.
    """
    listed = sorted(frames, key=lambda frame: frame.sha256)
    return {
        "schema_version": 1,
        "run": run,
        "fp32_model_sha256": model_sha256,
        "method": str(method),
        "frames": [
            {"sha256": f.sha256, "pixels_sha256": f.pixels_sha256, "reason": f.reason}
            for f in listed
        ],
        "distribution_shift": _rounded(shift),
        "zero_range_nodes": sorted(zero_range),
        "tensors": {name: _tensor(span, symmetric) for name, span in ranges.items()},
        **results,
    }


@contextmanager
def staged_record(folder: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yields the path of `folder`/calibration.json, which appears when the block has ended well.

    It is written before: if there is no space for it, the block, which writes the bundle that it
    speaks of, does not begin.

    Raises:
        OutputError: the place cannot be written.
    """
    text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"
    path = folder / RECORD
    with atomic_file(path) as staging:
        staging.write_text(text, encoding="utf-8")
        yield path


def _tensor(span: Range, symmetric: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"low": _rounded(span.low), "high": _rounded(span.high)}
    if span.zero:
        return found | {"scale": None}
    if symmetric:
        return found | {"scale": _rounded(span.amplitude / _SYMMETRIC_LEVELS), "zero_point": 0}
    scale = (span.high - span.low) / _LEVELS
    return found | {"scale": _rounded(scale), "zero_point": round(-span.low / scale)}


def _rounded(value: float) -> float:
    """Six significant digits: the last ones differ from CPU to CPU and would fill every diff."""
    return float(f"{value:.6g}")
