"""`metal-edge evaluate`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metal_edge.bundle import Bundle
from metal_edge.cli.console import print_json, progress, say, say_result
from metal_edge.cli.destination import check_folder
from metal_edge.cli.workflow import (
    calibrate_run,
    check_sizes,
    ensure_onnx,
    is_run,
    open_run,
    samples_to_evaluate,
    save_threshold,
    saved_threshold,
)
from metal_edge.data import Sample, load_dataset
from metal_edge.domain import Preprocess
from metal_edge.errors import SettingsError
from metal_edge.evaluation.evaluate import EvaluationResult
from metal_edge.evaluation.evaluate import evaluate as run_evaluation
from metal_edge.evaluation.report import write_report
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

TITLES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_auroc_30": "pixel AUROC up to FPR 0.3",
    "aupro_30": "AUPRO up to FPR 0.3",
    "image_f1": "F1 at the threshold",
}


@dataclass
class Subject:
    """What is evaluated, whether it came from a run or from a bundle."""

    runner: AbstractContextManager[Runner]
    samples: tuple[Sample, ...]
    preprocess: Preprocess
    threshold: float | None
    title: str
    details: dict[str, str]
    report: Path


def run_evaluate(
    model: Path, data: Path | None, out: Path | None, threads: int, as_json: bool
) -> None:
    """Evaluates, writes the report, prints the figures."""
    subject = (
        _from_run(model, data, threads) if is_run(model) else _from_bundle(model, data, threads)
    )
    check_sizes(subject.samples, subject.preprocess)
    report = out or subject.report
    check_folder(report)
    size = subject.preprocess
    with subject.runner as runner:
        with progress("evaluating") as advance:
            result = run_evaluation(
                runner,
                subject.samples,
                size.width,
                size.height,
                size.crop,
                threshold=subject.threshold,
                progress=lambda done, total: advance(done, total, ""),
            )
        say(f"writing {report} ...")
        write_report(report, result, runner, title=subject.title, details=subject.details)
    if as_json:
        print_json(result.to_dict() | {"report": str(report / "report.html")})
    else:
        say_result(_table(result))
        say_result(f"report: {report / 'report.html'}")


def _from_run(path: Path, data: Path | None, threads: int) -> Subject:
    run = open_run(path, data if data is not None and (data / "train").is_dir() else None)
    samples = samples_to_evaluate(run, data)
    runner = OnnxRuntimeRunner(ensure_onnx(run), threads)
    thresholds = saved_threshold(run)
    if thresholds is None:
        calibrated = calibrate_run(run, None, runner)
        save_threshold(run, calibrated)
        threshold = calibrated.score
        say(calibrated.statement())
    else:
        threshold = thresholds.score
    return Subject(
        runner,
        samples,
        run.preprocess,
        threshold,
        f"{path.resolve().name} on {(data or run.root).resolve().name}",
        {"model": str(path), "precision": "fp32", "data": str(data or run.root)},
        path / "report",
    )


def _from_bundle(path: Path, data: Path | None, threads: int) -> Subject:
    bundle = Bundle.open(path)
    if data is None:
        raise SettingsError(
            f"{path} is a bundle and does not know a data set", "add --data FOLDER (MVTec layout)"
        )
    samples = load_dataset(data.expanduser().resolve()).test
    if not samples:
        raise SettingsError(f"{data} has no test folder", "add test/good and test/<defect>")
    return Subject(
        load_runner(bundle, threads),
        samples,
        bundle.manifest.preprocess,
        bundle.thresholds.score,
        f"{bundle.manifest.name} ({bundle.manifest.precision}) on {data.resolve().name}",
        _details(bundle, data),
        _beside(path),
    )


def _beside(bundle: Path) -> Path:
    """A bundle holds nothing but what its manifest lists, so the report lies next to it."""
    named = bundle if bundle.name not in {"", ".."} else bundle.resolve()
    return named.with_name(f"{named.name}-report")


def _details(bundle: Bundle, data: Path) -> dict[str, str]:
    promise: Any = bundle.manifest.provenance.get("promise", "")
    return {
        "bundle": str(bundle.path),
        "precision": bundle.manifest.precision,
        "data": str(data),
        "threshold": str(promise),
    }


def _table(result: EvaluationResult) -> str:
    lines = []
    for key, title in TITLES.items():
        value = result.figures[key]
        shown = f"{value:.4f}" if value is not None else f"- ({result.not_computed[key]})"
        lines.append(f"{title:<28} {shown}")
    for label, counts in result.labels.items():
        lines.append(f"  {label:<26} {counts.rejected} of {counts.images} rejected")
    return "\n".join(lines)
