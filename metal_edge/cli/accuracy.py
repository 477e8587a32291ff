"""Pictures on which precisions are compared: maps, scores, and AUROC where there are labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metal_edge.cli.console import progress
from metal_edge.data import Sample
from metal_edge.domain import Inspection, Preprocess
from metal_edge.evaluation.evaluate import load_view
from metal_edge.evaluation.metrics import image_auroc
from metal_edge.quantize.sweep import Effect
from metal_edge.runtime.base import Runner
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

_STRIDE = 4  # of map pixels that are compared


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """A graph's answers on a check set. AUROCs are None without labels, or masks."""

    maps: NDArray[np.float32]  # [N, h, w], every fourth pixel
    scores: NDArray[np.float64]  # [N]
    image_auroc: float | None
    pixel_auroc: float | None

    def effect_against(self, fp32: Figures) -> Effect:
        """What this graph does to FP32's maps, scores and AUROCs."""
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN exceeds every budget
            correlation = float(np.corrcoef(fp32.maps.ravel(), self.maps.ravel())[0, 1])
        changes = np.abs(self.scores - fp32.scores) / np.maximum(np.abs(fp32.scores), 1e-12)
        return Effect(
            correlation,
            float(np.median(changes)),
            _loss(fp32.image_auroc, self.image_auroc),
            _loss(fp32.pixel_auroc, self.pixel_auroc),
        )


def _loss(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


class CheckSet:
    """Labelled pictures in memory, at the model's size.

    Args:
        samples: good and defective; truth is taken where the data set has masks for all defects.
        preprocess: how frames become the model's input.
    """

    def __init__(self, samples: Sequence[Sample], preprocess: Preprocess) -> None:
        self.images: list[NDArray[np.uint8]] = []
        self.truths: list[NDArray[np.bool_] | None] = []
        self.defective = np.array([not sample.good for sample in samples])
        size = preprocess
        with progress("reading pictures to compare on") as advance:
            for done, sample in enumerate(samples, start=1):
                view = load_view(sample, size.width, size.height, size.crop)
                self.images.append(view.model_input)
                self.truths.append(view.truth)
                advance(done, len(samples), "")

    def __len__(self) -> int:
        return len(self.images)

    def few(self, count: int) -> CheckSet:
        """At most about `count` of its pictures, good and defective in equal parts."""
        part = copy.copy(self)
        kinds = (np.flatnonzero(~self.defective), np.flatnonzero(self.defective))
        each = max(1, count // sum(1 for kind in kinds if kind.size))
        chosen = np.sort(np.concatenate([spread(kind, each) for kind in kinds]))
        part.images = [self.images[i] for i in chosen]
        part.truths = [self.truths[i] for i in chosen]
        part.defective = self.defective[chosen]
        return part

    @property
    def auroc_step(self) -> float:
        """What one swapped pair of a good and a defective image changes in image AUROC."""
        defects = int(self.defective.sum())
        pairs = defects * (len(self) - defects)
        return 1 / pairs if pairs else 0.0

    def measure(self, model: Path) -> Figures:
        """Runs an ONNX file on every picture.

        Raises:
            BundleError: ONNX Runtime cannot load it.
        """
        with OnnxRuntimeRunner(model) as runner:
            return self._figures(self._run(runner))

    def _run(self, runner: Runner) -> list[Inspection]:
        return [runner.run(image[None])[0] for image in self.images]

    def _figures(self, answers: Sequence[Inspection]) -> Figures:
        maps = np.stack([a.anomaly_map[::_STRIDE, ::_STRIDE] for a in answers])
        scores = np.array([a.score for a in answers], np.float64)
        finite = bool(np.isfinite(maps).all() and np.isfinite(scores).all())
        if not finite:  # as bad as can be, whatever it is compared with
            return Figures(np.full_like(maps, np.nan), np.full_like(scores, np.nan), 0.0, 0.0)
        return Figures(maps, scores, self._image_auroc(scores), self._pixel_auroc(maps))

    def _image_auroc(self, scores: NDArray[np.float64]) -> float | None:
        both = self.defective.any() and not self.defective.all()
        return image_auroc(scores, self.defective) if both else None

    def _pixel_auroc(self, maps: NDArray[np.float32]) -> float | None:
        truths = [
            _thinned(t, m.shape) for t, m in zip(self.truths, maps, strict=True) if t is not None
        ]
        if len(truths) < len(maps):
            return None
        truth = np.stack(truths).ravel()
        # Small masks can all fall between the pixels that are compared.
        both = truth.any() and not truth.all()
        return image_auroc(maps.ravel(), truth) if both else None


def spread(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Up to `count` of them, evenly spaced."""
    if len(indices) <= count:
        return indices
    return indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)]


def _thinned(truth: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Truth at the places of a thinned map's pixels."""
    rows = (np.arange(shape[0]) * truth.shape[0]) // shape[0]
    columns = (np.arange(shape[1]) * truth.shape[1]) // shape[1]
    return truth[np.ix_(rows, columns)]
