"""The gate between a converted graph and a bundle: it must say what its FP32 source says.

Tolerances are not chosen but measured. `quantize.rounding` makes a plain FP32 program with the
same rounding at the same places; its distance from FP32 is what this precision costs on this
model and these images. The graph that will be deployed may be at most FACTOR times as far off,
in the worst image of a set; held-out good images and adversarial ones (black, white, noise,
checks) are separate sets, since saturation there must not widen the tolerance here. Measured on
real pictures, the ratio is .8 to 1.1 for FP16 and INT8, for all calibration methods; 2 is what
flash-attention's tests allow, and leaves room for maxima over few images.

That catches a wrong conversion, but not a precision that a model cannot stand, where the plain
program is just as far off. So maps must also correlate with FP32's, scores must stay near, and
golden images must get FP32's verdict. Nothing can override the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metal_edge.domain import Image
from metal_edge.errors import MetalEdgeError
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

Advance = Callable[[int, int], None]

FACTOR = 2.0
# Two FP32 programs of one model differ by this much (`onnx_model.RELATIVE_TOLERANCE`): below it,
# no difference is evidence of anything. Also what a graph without a baseline (FP32) may differ.
FLOOR = 1e-3
# What the line can bear, whatever the precision costs: median relative score change (the
# threshold is calibrated on the graph itself, which absorbs a common factor) and correlation of
# all map pixels of all images.
SCORE_CHANGE = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.25}
MAP_CORRELATION = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.95}
_STRIDE = 4


class ParityError(MetalEdgeError):
    """A converted graph does not say what its source says."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """A graph beside its FP32 source on a set of images, one row per image, all float64 [N].

    Attributes:
        source, converted: scores.
        map_error: RMS difference of the map over the RMS of FP32's map.
        score_error: |score - FP32's| / |FP32's|.
        plain_map_error, plain_score_error: the same of the baseline.
        correlation: of the maps over all pixels of all images.
    """

    source: NDArray[np.float64]
    converted: NDArray[np.float64]
    map_error: NDArray[np.float64]
    score_error: NDArray[np.float64]
    plain_map_error: NDArray[np.float64]
    plain_score_error: NDArray[np.float64]
    correlation: float


def compare(
    source: Path,
    converted: Path,
    baseline: Path | None,
    images: NDArray[np.uint8],
    advance: Advance | None = None,
) -> Comparison:
    """Runs the graphs on `images` (uint8 [N, S, S, 3]).

    Args:
        source, converted: ONNX files.
        baseline: the plainly rounded graph; None takes the source itself, whose error is 0.
        advance: called with (done, total) after each image.
    """
    rows, before, after = [], [], []
    with (
        OnnxRuntimeRunner(source) as first,
        OnnxRuntimeRunner(converted) as second,
        OnnxRuntimeRunner(baseline or source) as third,
    ):
        for done, image in enumerate(images, start=1):
            a, b = first.run(image[None])[0], second.run(image[None])[0]
            c = third.run(image[None])[0] if baseline is not None else a
            map_a, map_b, map_c = (_thinned(x.anomaly_map) for x in (a, b, c))
            rows.append(
                [
                    a.score,
                    b.score,
                    _relative(map_b - map_a, map_a),
                    abs(b.score - a.score) / max(abs(a.score), 1e-12),
                    _relative(map_c - map_a, map_a),
                    abs(c.score - a.score) / max(abs(a.score), 1e-12),
                ]
            )
            before.append(map_a.ravel())
            after.append(map_b.ravel())
            if advance is not None:
                advance(done, len(images))
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN is judged, not warned of
        correlation = float(np.corrcoef(np.concatenate(before), np.concatenate(after))[0, 1])
    a, b, map_error, score_error, plain_map, plain_score = np.array(rows, np.float64).T
    return Comparison(a, b, map_error, score_error, plain_map, plain_score, correlation)


def _thinned(anomaly_map: NDArray[np.float32]) -> NDArray[np.float64]:
    """Every fourth pixel of a smoothed map says the same."""
    return anomaly_map[::_STRIDE, ::_STRIDE].astype(np.float64)


def _relative(difference: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    return float(np.sqrt((difference**2).mean() / max(float((reference**2).mean()), 1e-24)))


@dataclass(frozen=True, slots=True)
class Deviation:
    """Worst relative errors over a set of images, and the tolerance that held for them."""

    images: int
    map_error: float
    map_tolerance: float
    score_error: float
    score_tolerance: float

    @classmethod
    def of(cls, comparison: Comparison) -> Deviation:
        """The worst image against FACTOR times the baseline's worst image.

        A score is one pixel's or a few pixels' value: by chance the baseline's may be exact, so
        it is not held to less than its map.
        """
        plain_map = float(comparison.plain_map_error.max())
        plain_score = max(float(comparison.plain_score_error.max()), plain_map)
        return cls(
            len(comparison.source),
            float(comparison.map_error.max()),
            max(FACTOR * plain_map, FLOOR),
            float(comparison.score_error.max()),
            max(FACTOR * plain_score, FLOOR),
        )

    @property
    def holds(self) -> bool:
        """Both errors within tolerance; not so when one is NaN."""
        return self.map_error <= self.map_tolerance and self.score_error <= self.score_tolerance

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "images": self.images,
            "map_error": round(self.map_error, 6),
            "map_tolerance": round(self.map_tolerance, 6),
            "score_error": round(self.score_error, 6),
            "score_tolerance": round(self.score_tolerance, 6),
        }


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of a converted graph with FP32."""

    images: int
    median_score_change: float
    map_correlation: float
    held_out: Deviation
    adversarial: Deviation

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "images": self.images,
            "median_score_change": round(self.median_score_change, 6),
            "map_correlation": round(self.map_correlation, 6),
            "held_out": self.held_out.as_dict(),
            "adversarial": self.adversarial.as_dict(),
            "tolerance": f"{FACTOR:g} x the error of plain rounding, at least {FLOOR:g}",
        }


def require_parity(
    precision: str, held_out: Comparison, adversarial: Comparison, what: str = ""
) -> Parity:
    """Judges a conversion.

    Args:
        precision: fp32, fp16 or int8.
        what: how to name it in an error; the precision if empty.
        held_out: on good images that neither training nor calibration has seen.
        adversarial: on `onnx_model.probe_images`.

    Raises:
        ParityError: what differs, by how much, and what would be within tolerance.
    """
    parity = Parity(
        len(held_out.source),
        float(np.median(held_out.score_error)),
        held_out.correlation,
        Deviation.of(held_out),
        Deviation.of(adversarial),
    )
    remedy = "build with --precision fp16 or fp32, or report this with the run"
    for name, found in (("held-out", parity.held_out), ("adversarial", parity.adversarial)):
        if not found.holds:
            raise ParityError(
                f"{what or precision} differs from fp32 on {found.images} {name} images: largest"
                f" map error {found.map_error:.4f} (tolerance {found.map_tolerance:.4f}), score"
                f" error {found.score_error:.4f} (tolerance {found.score_tolerance:.4f});"
                f" tolerances are {FACTOR:g} x plain rounding to {precision}",
                remedy,
            )
    change, correlation = SCORE_CHANGE[precision], MAP_CORRELATION[precision]
    near = parity.median_score_change <= change and parity.map_correlation >= correlation
    if not near:  # also when a number is NaN
        raise ParityError(
            f"{what or precision} differs from fp32: median score change"
            f" {parity.median_score_change:.3f} (limit {change}), map correlation"
            f" {parity.map_correlation:.4f} (limit {correlation})",
            "train longer, give more varied images, or build with --precision fp16 or fp32",
        )
    return parity


@dataclass(frozen=True, slots=True, eq=False)
class GoldenCandidate:
    """A picture that may become a golden image.

    Attributes:
        image: uint8 [S, S, 3].
        good: whether it shows a good part.
        source, converted: its scores by FP32 and by the graph to be deployed.
        name: what a person knows it by.
    """

    image: Image
    good: bool
    source: float
    converted: float
    name: str


@dataclass(frozen=True, slots=True)
class Margin:
    """Distance of the nearest golden score on either side of the threshold, relative to it.

    None where no golden image lies on that side.
    """

    passing: float | None
    rejected: float | None

    def as_dict(self) -> dict[str, float | None]:
        """For the manifest."""
        return {
            key: None if value is None else round(value, 6)
            for key, value in (("passing", self.passing), ("rejected", self.rejected))
        }


def decision_margin(scores: Sequence[float], threshold: float) -> Margin:
    """How much room the golden images leave around the threshold."""
    off = [(score - threshold) / max(abs(threshold), 1e-12) for score in scores]
    below = [-x for x in off if x < 0]
    above = [x for x in off if x >= 0]
    return Margin(min(below, default=None), min(above, default=None))


def clear_candidates(
    candidates: Sequence[GoldenCandidate], threshold: float, clearance: float
) -> list[GoldenCandidate]:
    """Those whose FP32 score is clear of FP32's threshold, by `clearance` relative to it.

    What FP32 itself decides by a hair says nothing about a conversion. The choice looks at FP32
    alone, so that no conversion can choose its own examiners.
    """
    return [c for c in candidates if abs(c.source - threshold) > clearance * abs(threshold)]


def require_same_verdicts(
    precision: str,
    candidates: Sequence[GoldenCandidate],
    source_threshold: float,
    converted_threshold: float,
) -> None:
    """Every golden image must get FP32's verdict, each graph at its own threshold.

    Raises:
        ParityError: names the first image that does not.
    """
    words = {True: "passes", False: "is rejected"}
    for candidate in candidates:
        wanted = candidate.source < source_threshold
        got = candidate.converted < converted_threshold
        if got is not wanted:
            raise ParityError(
                f"{candidate.name} {words[wanted]} in fp32 (score {candidate.source:.4g},"
                f" threshold {source_threshold:.4g}) but {words[got]} in {precision}"
                f" ({candidate.converted:.4g}, {converted_threshold:.4g})",
                "give more good images for the threshold with --images, or build with --precision"
                " fp32",
            )
