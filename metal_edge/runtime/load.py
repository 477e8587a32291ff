"""From a verified bundle to a runner that reproduces its golden scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from metal_edge.bundle import Bundle
from metal_edge.domain import Inspection
from metal_edge.errors import BundleError
from metal_edge.runtime.base import Runner
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


def load_runner(bundle: Bundle, threads: int = 1) -> Runner:
    """The runner that the bundle's manifest asks for.

    Raises:
        UnavailableError: this machine lacks the back end, or has no plan for this bundle.
    """
    if bundle.manifest.backend == "tensorrt":
        # A daemon without a GPU starts sooner without it.
        from metal_edge.runtime.tensorrt_load import load_tensorrt_runner

        return load_tensorrt_runner(bundle)
    return OnnxRuntimeRunner(bundle.model_path, threads)


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """How far the runner is from the stored scores, and what it said of each golden image."""

    images: int
    worst_difference: float
    tolerance: float
    inspections: tuple[Inspection, ...] = ()


def read_golden_image(bundle: Bundle, file: str) -> NDArray[np.uint8]:
    """A golden image as uint8 [H, W, 3] RGB at the model's input size."""
    bgr = cv2.imread(str(bundle.path / file), cv2.IMREAD_COLOR)
    if bgr is None:
        raise BundleError(f"{bundle.path / file} is not a readable image", "build it again")
    return np.ascontiguousarray(bgr[..., ::-1], dtype=np.uint8)


def check_golden(bundle: Bundle, runner: Runner) -> GoldenResult:
    """Runs every golden image and compares its score and verdict with the stored ones.

    Raises:
        BundleError: a score is off by more than the tolerance, not finite, or on the other
            side of the threshold; names the image.
    """
    worst, inspections = 0.0, []
    threshold = bundle.thresholds.score
    for golden in bundle.golden.images:
        image = read_golden_image(bundle, golden.file)
        inspections.append(runner.run(image[None])[0])
        score = inspections[-1].score
        off = abs(score - golden.score)
        flipped = (score < threshold) != (golden.score < threshold)
        if not math.isfinite(score) or off > bundle.golden.tolerance or flipped:
            raise BundleError(
                f"golden image {bundle.path / golden.file} scored {score:.6g}, expected"
                f" {golden.score:.6g} within {bundle.golden.tolerance:.2g}",
                "this machine does not reproduce the bundle; build it here again",
            )
        worst = max(worst, off)
    images = len(bundle.golden.images)
    return GoldenResult(images, worst, bundle.golden.tolerance, tuple(inspections))
