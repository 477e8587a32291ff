"""`metal-edge calibrate`, `export` and `build-engine`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from metal_edge.cli.build_report import sentence, summary, threshold_dict
from metal_edge.cli.bundling import BuildOptions, Built, build_bundle
from metal_edge.cli.console import print_json, say, say_result
from metal_edge.cli.destination import bundle_folder, check_folder, check_onnx_file
from metal_edge.cli.engine import PlanOptions, Rebuilt, rebuild
from metal_edge.cli.int8_build import Int8Options
from metal_edge.cli.workflow import (
    OpenRun,
    calibrate_run,
    ensure_onnx,
    export_run,
    open_run,
    save_threshold,
    saved_threshold,
)
from metal_edge.errors import SettingsError
from metal_edge.export.engine import choose_backend
from metal_edge.export.precision import EnginePrecision
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.sweep import AUROC_BUDGET
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner


def run_calibrate(run: Path, rate: float | None, images: Path | None, as_json: bool) -> None:
    """Chooses the FP32 model's threshold and remembers the wanted rate for `build-engine`."""
    opened = open_run(run)
    with OnnxRuntimeRunner(ensure_onnx(opened), threads=2) as runner:
        threshold = calibrate_run(opened, rate, runner, images)
    save_threshold(opened, threshold)
    if as_json:
        print_json(threshold_dict(threshold))
    else:
        say_result(f"threshold {threshold.score:.6g}: {threshold.statement()}")


def run_export(run: Path, out: Path, batch: int | None) -> None:
    """Writes the FP32 graph."""
    check_onnx_file(out)
    worst = export_run(open_run(run), out, batch)
    say_result(f"{out}: agrees with the checkpoint, largest relative difference {worst:.1e}")


@dataclass(frozen=True, slots=True)
class Int8Wish:
    """What was asked about INT8, as the command line says it."""

    calibration: str = "minmax"
    images: Path | None = None
    record: Path | None = None
    budget: float = AUROC_BUDGET
    sweep: bool = True

    def check(self, precision: str) -> None:
        """Refuses what would have no effect, and a record that could not be written.

        Raises:
            SettingsError: an INT8 option without --precision int8, or a budget below 0.
            OutputError: the record's folder cannot be made.
        """
        if precision != "int8" and self != Int8Wish():
            raise SettingsError(
                f"calibration options have no effect on --precision {precision}",
                "leave them out, or build with --precision int8",
            )
        if not 0 <= self.budget < 1:
            raise SettingsError(
                f"--accuracy-budget {self.budget} is not between 0 and 1", "0.002 is usual"
            )
        if self.record is not None:
            check_folder(self.record)


def run_build_engine(
    run: Path,
    out: Path,
    precision: str,
    backend: str,
    rate: float | None,
    images: Path | None,
    options: PlanOptions,
    as_json: bool,
    int8: Int8Wish = Int8Wish(),
) -> None:
    """Builds the bundle for the back end of this machine."""
    int8.check(precision)
    choice = choose_backend(backend)
    options.check(choice.backend)
    folder = bundle_folder(out)
    opened = open_run(run)
    say(choice.reason)
    remembered = saved_threshold(opened)
    if rate is None and remembered is not None:
        rate = remembered.false_reject_rate
    wanted = BuildOptions(
        EnginePrecision(precision),
        rate,
        images,
        Int8Options(CalibrationMethod(int8.calibration), int8.images, int8.budget, int8.sweep),
        int8.record,
        choice.backend,
        options.attention,
    )
    if choice.backend == "tensorrt":
        built, rebuilt = _build_for_tensorrt(opened, folder, wanted, options)
        plan, words = rebuilt.as_dict(), f"\n{rebuilt.sentence()}"
    else:
        built = build_bundle(opened, folder, wanted)
        plan, words = {}, ""
    for warning in built.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_json(summary(built) | plan)
    else:
        say_result(sentence(built) + words)


def _build_for_tensorrt(
    run: OpenRun, folder: Path, wanted: BuildOptions, options: PlanOptions
) -> tuple[Built, Rebuilt]:
    """A bundle that ONNX Runtime has proven, then its plan, then the bundle that asks for it."""
    with TemporaryDirectory(dir=run.path, prefix=".bundle-") as staging:
        portable = Path(staging) / "portable"
        built = build_bundle(run, portable, wanted)
        rebuilt = rebuild(built.bundle, folder, "tensorrt", options)
    return replace(built, bundle=rebuilt.bundle), rebuilt
