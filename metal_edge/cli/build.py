"""`metal-edge calibrate`, `export` and `build-engine`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from metal_edge.cli.console import print_json, say, say_result
from metal_edge.cli.destination import bundle_folder, check_onnx_file
from metal_edge.cli.engine import PlanOptions, Rebuilt, rebuild
from metal_edge.cli.workflow import (
    Built,
    OpenRun,
    build_bundle,
    calibrate_run,
    ensure_onnx,
    export_run,
    open_run,
    save_threshold,
    saved_threshold,
)
from metal_edge.evaluation.thresholds import ConformalThreshold
from metal_edge.export.engine import choose_backend
from metal_edge.export.precision import EnginePrecision
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


def run_calibrate(run: Path, rate: float | None, images: Path | None, as_json: bool) -> None:
    """Chooses the FP32 model's threshold and remembers the wanted rate for `build-engine`."""
    opened = open_run(run)
    with OnnxRuntimeRunner(ensure_onnx(opened), threads=2) as runner:
        threshold = calibrate_run(opened, rate, runner, images)
    save_threshold(opened, threshold)
    if as_json:
        print_json(_threshold_dict(threshold))
    else:
        say_result(f"threshold {threshold.score:.6g}: {threshold.statement()}")


def run_export(run: Path, out: Path) -> None:
    """Writes the FP32 graph."""
    check_onnx_file(out)
    worst = export_run(open_run(run), out)
    say_result(f"{out}: agrees with the checkpoint, largest relative difference {worst:.1e}")


def run_build_engine(
    run: Path,
    out: Path,
    precision: str,
    backend: str,
    rate: float | None,
    images: Path | None,
    options: PlanOptions,
    as_json: bool,
) -> None:
    """Builds the bundle for the back end of this machine."""
    choice = choose_backend(backend)
    options.check(choice.backend)
    folder = bundle_folder(out)
    opened = open_run(run)
    say(choice.reason)
    remembered = saved_threshold(opened)
    if rate is None and remembered is not None:
        rate = remembered.false_reject_rate
    wanted = EnginePrecision(precision)
    if choice.backend == "tensorrt":
        built, rebuilt = _build_for_tensorrt(opened, folder, wanted, rate, images, options)
        plan, words = rebuilt.as_dict(), f"\n{rebuilt.sentence()}"
    else:
        built = build_bundle(opened, folder, wanted, rate, images)
        plan, words = {}, ""
    if as_json:
        print_json(_summary(built) | plan)
    else:
        say_result(_sentence(built) + words)


def _build_for_tensorrt(
    run: OpenRun,
    folder: Path,
    precision: EnginePrecision,
    rate: float | None,
    images: Path | None,
    options: PlanOptions,
) -> tuple[Built, Rebuilt]:
    """A bundle that ONNX Runtime has proven, then its plan, then the bundle that asks for it."""
    with TemporaryDirectory(dir=run.path, prefix=".bundle-") as staging:
        portable = Path(staging) / "portable"
        built = build_bundle(run, portable, precision, rate, images, "tensorrt")
        rebuilt = rebuild(built.bundle, folder, "tensorrt", options)
    return replace(built, bundle=rebuilt.bundle), rebuilt


def _summary(built: Built) -> dict[str, object]:
    manifest = built.bundle.manifest
    return {
        "bundle": str(built.bundle.path),
        "sha256": built.bundle.digest,
        "precision": manifest.precision,
        "backend": manifest.backend,
        "bytes": manifest.files["model.onnx"].size,
        "fp32_bytes": built.fp32_bytes,
        "parity": built.parity,
        "threshold": _threshold_dict(built.threshold),
        "golden_images": len(built.bundle.golden.images),
    }


def _sentence(built: Built) -> str:
    manifest = built.bundle.manifest
    size = manifest.files["model.onnx"].size
    return "\n".join(
        [
            f"{built.bundle.path}: {manifest.precision} for {manifest.backend},"
            f" {size / 1e6:.1f} MB (fp32 {built.fp32_bytes / 1e6:.1f} MB)",
            f"  parity with fp32 on {built.parity['images']} held-out images: map correlation"
            f" {built.parity['map_correlation']}, median score change"
            f" {100 * built.parity['median_score_change']:.2f} %",
            f"  threshold {built.threshold.score:.6g}: {built.threshold.statement()}",
            f"  {len(built.bundle.golden.images)} golden images, id {built.bundle.digest[:12]}",
        ]
    )


def _threshold_dict(threshold: ConformalThreshold) -> dict[str, object]:
    return {
        "score": threshold.score,
        "false_reject_rate": threshold.false_reject_rate,
        "guaranteed_rate": threshold.guaranteed_rate,
        "upper95": threshold.upper95,
        "calibration_images": threshold.n,
        "statement": threshold.statement(),
    }
