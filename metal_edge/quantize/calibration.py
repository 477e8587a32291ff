"""Ranges of activations over real frames: min-max, percentile, entropy.

Frames are run one by one and reduced to a range, or to a histogram of fixed size, so memory does
not grow with their number. The same ranges serve every Q/DQ convention: unsigned with a zero
point for ONNX Runtime, signed symmetric for TensorRT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from metal_edge.errors import DataError

MIN_FRAMES = 8
PERCENTILE = 99.99
BINS = 4096
LEVELS = 256
_CANDIDATES = 64
# Per tensor and frame; a larger one is sampled at even steps. Its extremes are always exact.
_SAMPLED = 65_536
# A scale of less means nothing but rounding, and its inverse may overflow.
_ZERO_RANGE = 1e-9

Advance = Callable[[int, int], None]


class CalibrationMethod(StrEnum):
    """How much of what a tensor has shown its INT8 range covers.

    MINMAX: all of it. PERCENTILE: all but the outermost 0.01 % of the values. ENTROPY: the part
    whose 256 steps keep most of the distribution (Migacz, "8-bit inference with TensorRT", 2017).
    """

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


@dataclass(frozen=True, slots=True)
class Range:
    """What INT8 covers of a tensor; always holds 0, which must be exact (padding, clipping)."""

    low: float
    high: float

    @property
    def zero(self) -> bool:
        """Nothing to quantise: the tensor is (nearly) always 0."""
        return self.high - self.low < _ZERO_RANGE

    @property
    def amplitude(self) -> float:
        """The largest magnitude in it."""
        return max(-self.low, self.high)

    def symmetric(self) -> Range:
        """The smallest range around 0 that covers this one."""
        return Range(-self.amplitude, self.amplitude)


def frame_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of a frame's pixels, hex: what the record lists and duplicates share."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def check_frames(images: NDArray[np.uint8], least: int = MIN_FRAMES) -> list[str]:
    """Digests of calibration frames, in their order.

    Args:
        images: uint8 [N, S, S, 3].

    Raises:
        DataError: no frame, two that are the same, too few, or all of one colour.
    """
    remedy = "record more good parts, or build with --precision fp32"
    if not len(images):
        raise DataError("INT8 calibration has no frame", remedy)
    digests = [frame_digest(image) for image in images]
    distinct = len(set(digests))
    if distinct < least:
        raise DataError(
            f"INT8 calibration has {distinct} distinct frames, it needs {least}", remedy
        )
    if distinct < len(digests):
        twice = next(i for i, digest in enumerate(digests) if digest in digests[:i])
        raise DataError(
            f"INT8 calibration frame {twice + 1} of {len(digests)} is a copy of frame"
            f" {digests.index(digests[twice]) + 1}",
            "give each picture once",
        )
    if all(image.min() == image.max() for image in images):
        raise DataError("all INT8 calibration frames are of one colour", "check the camera")
    return digests


def activation_ranges(
    model: onnx.ModelProto,
    layers: Sequence[str],
    images: NDArray[np.uint8],
    method: CalibrationMethod,
    advance: Advance | None = None,
) -> dict[str, Range]:
    """Ranges of every tensor that the named nodes read or write, by name.

    Args:
        model: FP32 graph with input `image`.
        layers: names of the nodes to be quantised.
        images: uint8 [N, S, S, 3] distinct frames; see `check_frames`.
        advance: called with (done, total) after each frame.

    Raises:
        DataError: a tensor is not finite on a frame; names it.
    """
    tensors = activations_of(model, layers)
    session = _observing(model, tensors)
    passes = 1 if method is CalibrationMethod.MINMAX else 2
    total = passes * len(images)
    low = dict.fromkeys(tensors, 0.0)
    high = dict.fromkeys(tensors, 0.0)
    for done, image in enumerate(images, start=1):
        for name, values in _observe(session, tensors, image):
            least, most = float(values.min()), float(values.max())
            if not np.isfinite([least, most]).all():
                raise DataError(
                    f"{name} is not finite on calibration frame {done}",
                    "check the run with `metal-edge evaluate`",
                )
            low[name], high[name] = min(low[name], least), max(high[name], most)
        if advance is not None:
            advance(done, total)
    ranges = {name: Range(low[name], high[name]) for name in tensors}
    if method is CalibrationMethod.MINMAX:
        return ranges
    histograms = {name: np.zeros(BINS, np.int64) for name in tensors if not ranges[name].zero}
    for done, image in enumerate(images, start=1):
        for name, values in _observe(session, list(histograms), image):
            histograms[name] += histogram(values, ranges[name])
        if advance is not None:
            advance(len(images) + done, total)
    narrow = percentile_range if method is CalibrationMethod.PERCENTILE else entropy_range
    return ranges | {name: narrow(counts, ranges[name]) for name, counts in histograms.items()}


def activations_of(model: onnx.ModelProto, layers: Sequence[str]) -> list[str]:
    """Names of the tensors, constants aside, that the named nodes read or write, in order."""
    wanted = set(layers)
    constants = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in wanted:
            names |= dict.fromkeys(n for n in (*node.input, *node.output) if n)
    return [name for name in names if name not in constants]


def histogram(values: NDArray[np.float32], span: Range) -> NDArray[np.int64]:
    """Counts of `values` in BINS equal bins from span.low to span.high, int64 [BINS]."""
    step = BINS / (span.high - span.low)
    flat = values.reshape(-1)[:: max(1, values.size // _SAMPLED)]
    bins = ((flat - np.float32(span.low)) * np.float32(step)).astype(np.int64)
    return np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)


def percentile_range(counts: NDArray[np.int64], span: Range, share: float = PERCENTILE) -> Range:
    """`span` without the outermost (100 - share) % of the values, half of them at each end."""
    cumulated = np.cumsum(counts) / counts.sum()
    outside = (1 - share / 100) / 2
    edges = np.linspace(span.low, span.high, len(counts) + 1)
    low = edges[int(np.searchsorted(cumulated, outside, side="right"))]
    high = edges[int(np.searchsorted(cumulated, 1 - outside, side="left")) + 1]
    return Range(min(0.0, float(low)), max(0.0, float(high)))


def entropy_range(counts: NDArray[np.int64], span: Range) -> Range:
    """The shrunk `span` whose 256 steps lose least of the distribution (KL divergence).

    Both ends shrink in proportion, so that 0 keeps its place in the range.
    """
    counts = _without_spike_at_zero(counts, span)
    shares = np.linspace(1.0, LEVELS / BINS * 2, _CANDIDATES)
    losses = [_divergence(counts, span, float(share)) for share in shares]
    best = float(shares[int(np.argmin(losses))])
    return Range(span.low * best, span.high * best)


def _without_spike_at_zero(counts: NDArray[np.int64], span: Range) -> NDArray[np.int64]:
    """INT8 holds 0 exactly, so the zeros that clipping makes must not count as coarsely kept."""
    zero = min(BINS - 1, int(-span.low / (span.high - span.low) * BINS))
    beside = [counts[i] for i in (zero - 1, zero + 1) if 0 <= i < BINS]
    level = counts.copy()
    level[zero] = sum(beside) // len(beside)
    return level if level.any() else counts


def _divergence(counts: NDArray[np.int64], span: Range, share: float) -> float:
    """KL(P || Q): P the histogram clipped to share * span, Q its LEVELS-step version.

    Within a step, Q spreads the step's mass evenly over the bins that P occupies. What P moves
    to the ends by clipping, Q does not know of: that is the price of clipping.
    """
    centres = np.linspace(span.low, span.high, len(counts), endpoint=False)
    centres = centres + (span.high - span.low) / (2 * len(counts))
    inside = np.flatnonzero((centres >= span.low * share) & (centres <= span.high * share))
    kept = counts[inside[0] : inside[-1] + 1].astype(np.float64)
    clipped = kept.copy()
    clipped[0] += counts[: inside[0]].sum()
    clipped[-1] += counts[inside[-1] + 1 :].sum()
    steps = np.arange(kept.size) * LEVELS // kept.size
    occupied = (clipped > 0).astype(np.float64)
    mass = np.bincount(steps, kept, LEVELS)
    places = np.bincount(steps, occupied, LEVELS)
    even = (mass / np.maximum(places, 1))[steps] * occupied
    # An end that holds clipped values only would make the divergence infinite.
    p = clipped[clipped > 0] / clipped.sum()
    q = np.maximum(even[clipped > 0] / kept.sum(), 1e-12)
    return float((p * np.log(p / q)).sum())


def _observing(model: onnx.ModelProto, tensors: Sequence[str]) -> Any:
    """A session that puts out `tensors`."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    present = {output.name for output in seen.graph.output}
    seen.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in tensors
        if name not in present
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        seen.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _observe(
    session: Any, tensors: Sequence[str], image: NDArray[np.uint8]
) -> list[tuple[str, NDArray[np.float32]]]:
    if not tensors:
        return []
    return list(zip(tensors, session.run(list(tensors), {"image": image[None]}), strict=True))
