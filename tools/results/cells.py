"""A cell: one model, one data set, one seed, and the JSON file that says how it went."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from metal_edge.data import Dataset, load_images
from metal_edge.errors import DataError
from metal_edge.evaluation.evaluate import EvaluationResult, evaluate
from metal_edge.evaluation.metrics import PixelCurves
from metal_edge.evaluation.report import write_report
from metal_edge.evaluation.thresholds import (
    UnsupportedRateError,
    choose_rate,
    conformal_threshold,
)
from metal_edge.export.onnx_model import check_parity, onnx_from_model, probe_images
from metal_edge.files import atomic_file, write_text
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner
from tools.results.catalogue import Variant
from tools.results.fit import Fitted, Hooks, fit
from tools.results.measure import multiply_accumulates

RESULT = "result.json"
MODEL = "model.onnx"
RUN = "run"
REPORT = "report"
CURVE_POINTS = 201
PARITY_IMAGES = 4


class LabelCount(BaseModel):
    """Verdicts on one label's images at the calibrated threshold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int
    rejected: int


class CellResult(BaseModel):
    """What a cell leaves behind. Figures are 0..1; None where `not_computed` says why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    fingerprint: str
    dataset: str
    model: str
    seed: int
    figures: dict[str, float | None]
    not_computed: dict[str, str]
    labels: dict[str, LabelCount]
    threshold: float | None
    scores: list[tuple[float, bool]]
    pixel_roc: list[tuple[float, float]]
    parameters: int
    macs: int
    training_minutes: float
    epochs: int
    stop: str
    threads: int
    finished_utc: str


@dataclass(frozen=True)
class Cell:
    """What is to be done.

    Attributes:
        dataset: checked (see `sets.load_checked`), and `digest` over its pictures.
        threads: for training; part of the identity, as a time budget buys more with two.
        folder: the cell's own.
        keep: leave the exported model and a report with pictures behind.
    """

    name: str
    dataset: Dataset
    digest: str
    variant: Variant
    seed: int
    threads: int
    folder: Path
    keep: bool

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that determines the figures."""
        variant = self.variant
        if variant.network is None:
            raise ValueError(f"this version has no {variant.name}")
        training = variant.training.model_copy(update={"seed": self.seed})
        content = {
            "network": variant.network.model_dump(mode="json"),
            "training": training.model_dump(mode="json", exclude={"save_every_s"}),
            "data": self.digest,
            "threads": self.threads,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def finished(self) -> CellResult | None:
        """The result of this very configuration, if it is there.

        A damaged file, or one of another configuration, counts as none: it is made again.
        """
        path = self.folder / RESULT
        if not path.is_file():
            return None
        try:
            result = CellResult.model_validate_json(path.read_bytes())
        except ValidationError:
            return None
        return result if result.fingerprint == self.fingerprint else None


def run_cell(cell: Cell, hooks: Hooks) -> CellResult:
    """Trains, exports, evaluates through ONNX Runtime, and writes the cell's files.

    The result is the last file to be written: a cell with one is whole.

    Raises:
        KeyboardInterrupt: the person stopped it; the next call goes on.
        MetalEdgeError: see `fit`, `evaluate`.
    """
    network = cell.variant.network
    if network is None:
        raise ValueError(f"this version has no {cell.variant.name}")
    training = cell.variant.training.model_copy(update={"seed": cell.seed})
    (cell.folder / RESULT).unlink(missing_ok=True)
    fitted = fit(cell.dataset.root, network, training, cell.folder / RUN, hooks)
    onnx = cell.folder / MODEL
    _export(fitted, onnx, hooks)
    with OnnxRuntimeRunner(onnx, cell.threads) as runner:
        threshold = _threshold(fitted, runner, hooks)
        curves, size = PixelCurves(), fitted.preprocess
        with hooks.progress("evaluating") as advance:
            evaluation = evaluate(
                runner,
                cell.dataset.test,
                size.width,
                size.height,
                size.crop,
                threshold=threshold,
                progress=hooks.counted(advance),
                curves=curves,
            )
        if cell.keep:
            title = f"{cell.variant.name} on {cell.name}"
            facts = {"model": cell.variant.title, "seed": str(cell.seed)}
            write_report(cell.folder / REPORT, evaluation, runner, title=title, details=facts)
    result = _result(cell, fitted, evaluation, curves, hooks)
    if hooks.interrupted():
        raise KeyboardInterrupt
    write_text(cell.folder / RESULT, result.model_dump_json(indent=1) + "\n")
    shutil.rmtree(cell.folder / RUN, ignore_errors=True)  # the checkpoint: as large as the graph
    if not cell.keep:
        onnx.unlink(missing_ok=True)
    return result


def _export(fitted: Fitted, path: Path, hooks: Hooks) -> None:
    """FP32 ONNX, compared with PyTorch before it gets its name."""
    size = fitted.preprocess
    held_out = fitted.split.calibration[:PARITY_IMAGES]
    with hooks.progress("exporting to ONNX") as advance:
        step = hooks.counted(advance)
        step(0, 2)
        images = load_images(held_out, size.width, size.height, size.crop)
        content = onnx_from_model(fitted.model).SerializeToString()
        step(1, 2)
        with atomic_file(path) as staged:
            staged.write_bytes(content)
            check_parity(fitted.model, staged, np.concatenate([probe_images(size.width), images]))
        step(2, 2)


def _threshold(fitted: Fitted, runner: OnnxRuntimeRunner, hooks: Hooks) -> float | None:
    """The tightest promise that the held-out images support; None where they are too few."""
    size, samples = fitted.preprocess, fitted.split.calibration
    try:
        rate = choose_rate(len(samples))
    except UnsupportedRateError:
        return None
    images = load_images(samples, size.width, size.height, size.crop)
    with hooks.progress("scoring held-out good images") as advance:
        step, scores = hooks.counted(advance), []
        for done, image in enumerate(images, start=1):
            scores.append(runner.run(image[None])[0].score)
            step(done, len(images))
    try:
        return conformal_threshold(scores, rate).score
    except DataError:  # all scores equal or not finite: no verdicts, and the figures show why
        return None


def _result(
    cell: Cell, fitted: Fitted, evaluation: EvaluationResult, curves: PixelCurves, hooks: Hooks
) -> CellResult:
    has_pixels = evaluation.pixel_auroc is not None
    figures: dict[str, Any] = evaluation.figures
    return CellResult(
        fingerprint=cell.fingerprint,
        dataset=cell.name,
        model=cell.variant.name,
        seed=cell.seed,
        figures=figures,
        not_computed=dict(evaluation.not_computed),
        labels={
            label: LabelCount(images=counts.images, rejected=counts.rejected)
            for label, counts in evaluation.labels.items()
        },
        threshold=evaluation.threshold,
        scores=[(r.score, not r.sample.good) for r in evaluation.records if r.score is not None],
        pixel_roc=curves.roc(CURVE_POINTS) if has_pixels else [],
        parameters=fitted.parameters,
        macs=multiply_accumulates(fitted.model),
        training_minutes=fitted.minutes,
        epochs=fitted.epochs,
        stop=fitted.stop,
        threads=cell.threads,
        finished_utc=hooks.utc().isoformat(timespec="seconds"),
    )
