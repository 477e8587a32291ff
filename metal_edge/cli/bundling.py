"""Run -> FP32 ONNX -> precision -> parity gate -> threshold on the final graph -> bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import metal_edge
from metal_edge.bundle import Bundle, Thresholds, sha256_of
from metal_edge.cli.console import progress, say
from metal_edge.cli.destination import working_files
from metal_edge.cli.int8_build import (
    Int8Built,
    Int8Options,
    build_int8,
    judge_golden,
    save_baseline,
)
from metal_edge.cli.workflow import OpenRun, ensure_onnx, spread, unseen
from metal_edge.data import GoodSplit, Sample, load_dataset, resolve_split
from metal_edge.evaluation.thresholds import ConformalThreshold, choose_rate, conformal_threshold
from metal_edge.export.build import (
    GOLDEN_RELATIVE_TOLERANCE,
    BundleParts,
    golden_tolerance,
    write_bundle,
)
from metal_edge.export.onnx_model import probe_images
from metal_edge.export.parity import (
    Comparison,
    GoldenCandidate,
    Margin,
    Parity,
    ParityError,
    clear_candidates,
    compare,
    decision_margin,
    require_parity,
    require_same_verdicts,
)
from metal_edge.export.plugin_parity import Trial, judge_int8_attention
from metal_edge.export.precision import Conversion, EnginePrecision, write_fp16, write_fp32
from metal_edge.export.tensorrt_attention import INT8_EVIDENCE
from metal_edge.export.tensorrt_int8 import int8_for_tensorrt
from metal_edge.files import remove_leftovers
from metal_edge.quantize.record import calibration_record, staged_record
from metal_edge.training.run import CHECKPOINT

GOLDEN_GOOD = 6
GOLDEN_BAD = 4
# Golden images are chosen among what FP32 decides by more than this share of its threshold.
GOLDEN_CLEARANCE = 0.05


@dataclass(frozen=True)
class BuildOptions:
    """What a person asked of `build-engine`.

    Attributes:
        precision: of the network.
        rate: wanted false-reject rate; None takes the tightest that the images support.
        extra: folder of further good images for the threshold.
        int8: ignored by other precisions.
        record: folder for the evidence of an INT8 calibration.
        backend: whose INT8 conventions the graph follows, onnxruntime or tensorrt.
        attention: what a plan of it may have; not native, and the plugin's INT8 attention is
            judged as well.
    """

    precision: EnginePrecision
    rate: float | None = None
    extra: Path | None = None
    int8: Int8Options = field(default_factory=Int8Options)
    record: Path | None = None
    backend: str = "onnxruntime"
    attention: str = "native"

    @property
    def int8_attention(self) -> bool:
        """Whether a plan may have INT8 attention, which the bundle's graph has not."""
        wanted = self.precision is EnginePrecision.INT8 and self.backend == "tensorrt"
        return wanted and self.attention != "native"


@dataclass(frozen=True)
class Built:
    """A bundle and the figures that a person wants to see about it."""

    bundle: Bundle
    threshold: ConformalThreshold
    parity: dict[str, Any]
    fp32_bytes: int
    margin: Margin
    accuracy: dict[str, Any] | None
    record: Path | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Judged:
    """The held-out pictures, both graphs' scores on them, and the threshold of each."""

    images: NDArray[np.uint8]
    names: tuple[str, ...]
    comparison: Comparison
    parity: Parity
    fp32_threshold: float
    threshold: ConformalThreshold

    @property
    def changed_verdicts(self) -> int:
        """Held-out pictures that the two graphs judge differently, each at its threshold."""
        before = self.comparison.source < self.fp32_threshold
        after = self.comparison.converted < self.threshold.score
        return int(np.count_nonzero(before != after))


def build_bundle(run: OpenRun, destination: Path, options: BuildOptions) -> Built:
    """Writes the bundle, or raises and leaves an older one as it was.

    Raises:
        ParityError: the graph does not say what FP32 says.
        DataError: pictures that cannot calibrate INT8, or too few for the threshold.
        OutputError: the place cannot be written.
    """
    remove_leftovers(destination)
    source = ensure_onnx(run)
    precision = options.precision
    # Of this process alone: what is judged must be what goes into the bundle, even if somebody
    # builds another one from the same run meanwhile.
    remove_leftovers(run.path / "build")
    work = run.path / f".build.{os.getpid()}.partial"
    staged, plain = work / f"{precision}.onnx", work / f"{precision}-plain.onnx"
    split = resolve_split(run.record.split, run.root)
    int8: Int8Built | None = None
    try:
        with working_files(run.path):
            work.mkdir(exist_ok=True)
            conversion, int8 = _convert(run, source, staged, split, options)
            baseline = save_baseline(conversion, plain)
        judged = _judge(run, source, staged, baseline, split, options)
        candidates = _golden_candidates(run, split, judged, source, staged)
        require_same_verdicts(
            str(precision), candidates, judged.fp32_threshold, judged.threshold.score
        )
        golden = _steady(candidates, judged.threshold.score)
        margin = decision_margin([c.converted for c in golden], judged.threshold.score)
        warnings = _judge_attention(judged, golden, conversion, (source, staged, baseline), options)
        if int8 is not None:
            pictures = _samples_of(golden, run, split)
            budget = options.int8.budget
            warnings += judge_golden(int8, (source, staged), pictures, run, budget)
        parts = _parts(run, staged, precision, judged, golden)
        parity = judged.parity.as_dict() | {"changed_verdicts": judged.changed_verdicts}
        parts.provenance.update(
            precision=conversion.notes, parity=parity, decision_margin=margin.as_dict()
        )
        with _record(run, source, options, int8, judged, parity) as record:
            bundle = write_bundle(destination, parts)
    except ParityError:
        for warning in int8.frames.warnings if int8 else ():
            say(f"warning: {warning}")  # it may be the reason
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Built(
        bundle,
        judged.threshold,
        parity,
        source.stat().st_size,
        margin,
        int8.accuracy if int8 else None,
        record,
        (*(int8.frames.warnings if int8 else ()), *warnings, *_golden_warnings(bundle)),
    )


def _convert(
    run: OpenRun, source: Path, staged: Path, split: GoodSplit, options: BuildOptions
) -> tuple[Conversion, Int8Built | None]:
    say(f"writing {options.precision} into the graph ...")
    if options.precision is EnginePrecision.INT8:
        built = build_int8(
            run, source, staged, split, options.int8, symmetric=options.backend == "tensorrt"
        )
        if options.backend == "tensorrt":
            notes, made = built.conversion.notes, int8_for_tensorrt(source, staged)
            wide = {group["group"] for group in made["fp32_islands"]}
            # What is FP32 for ONNX Runtime is FP16 here, but for what FP16 cannot do either.
            notes["fp16_islands"] = [g for g in notes["fp32_islands"] if g["group"] not in wide]
            notes.update(made)
        return built.conversion, built
    write = write_fp16 if options.precision is EnginePrecision.FP16 else write_fp32
    return write(source, staged), None


def _judge(
    run: OpenRun,
    source: Path,
    staged: Path,
    baseline: Path | None,
    split: GoodSplit,
    options: BuildOptions,
) -> _Judged:
    """Parity on held-out and adversarial pictures; both thresholds from the same scores."""
    samples = split.calibration
    if options.extra is not None:
        samples = (*samples, *unseen(run, options.extra))
    images = run.load(samples, "reading held-out good images")
    with progress(f"comparing {options.precision} with fp32") as advance:
        held_out = compare(
            source, staged, baseline, images, lambda done, total: advance(done, total, "")
        )
    adversarial = compare(source, staged, baseline, probe_images(run.preprocess.width))
    parity = require_parity(str(options.precision), held_out, adversarial)
    rate = choose_rate(len(images)) if options.rate is None else options.rate
    return _Judged(
        images,
        tuple(str(sample.path) for sample in samples),
        held_out,
        parity,
        conformal_threshold(held_out.source, rate).score,
        conformal_threshold(held_out.converted, rate),
    )


def _judge_attention(
    judged: _Judged,
    golden: Sequence[GoldenCandidate],
    conversion: Conversion,
    graphs: tuple[Path, Path, Path | None],
    options: BuildOptions,
) -> tuple[str, ...]:
    """The gate of the plugin's INT8 attention, noted in `conversion`; warnings."""
    if not options.int8_attention:
        return ()
    probes = probe_images(judged.images.shape[1])
    threshold = judged.threshold.score
    trial = Trial(*graphs, judged.images, probes, golden, threshold, golden_tolerance(threshold))
    with progress("comparing the plugin's int8 attention with fp32") as advance:
        found = judge_int8_attention(trial, lambda done, total: advance(done, total, ""))
    if found is None:
        return ()
    conversion.notes[INT8_EVIDENCE] = found
    refused = found["refused"]
    return () if refused is None else (f"the plugin's int8 attention is no candidate: {refused}",)


def _golden_candidates(
    run: OpenRun, split: GoodSplit, judged: _Judged, source: Path, staged: Path
) -> list[GoldenCandidate]:
    """Good and defective parts that FP32 decides clearly, and a negative that no line shows.

    The negative makes sure that every bundle holds an image far above its threshold.
    """
    good = [
        GoldenCandidate(image, True, float(a), float(b), name)
        for image, a, b, name in zip(
            judged.images,
            judged.comparison.source,
            judged.comparison.converted,
            judged.names,
            strict=True,
        )
    ]
    defects = [s for s in load_dataset(run.root).test if not s.good]
    chosen = spread(tuple(defects), GOLDEN_BAD * 2)
    images = [255 - judged.images[:1]]
    if chosen:
        images.insert(0, run.load(chosen, "reading golden images"))
    pictures = np.concatenate(images)
    scores = compare(source, staged, None, pictures)
    names = [*(str(s.path) for s in chosen), f"the negative of {judged.names[0]}"]
    bad = [
        GoldenCandidate(image, False, float(a), float(b), name)
        for image, a, b, name in zip(pictures, scores.source, scores.converted, names, strict=True)
    ]
    threshold = judged.fp32_threshold
    passing = sorted((c for c in good if c.source < threshold), key=lambda c: c.source)
    kept_bad = [
        *spread(tuple(_clear(bad[:-1], threshold)), GOLDEN_BAD - 1),
        *_clear(bad[-1:], threshold),
    ]
    # A bundle without any golden image could not be verified at all.
    return [*spread(tuple(_clear(passing, threshold)), GOLDEN_GOOD), *kept_bad] or bad[-1:]


def _samples_of(
    golden: Sequence[GoldenCandidate], run: OpenRun, split: GoodSplit
) -> tuple[Sample, ...]:
    """Those that are pictures of the data set, with their truth: not the negative."""
    test = load_dataset(run.root).test
    by_path = {str(sample.path): sample for sample in (*split.calibration, *test)}
    return tuple(by_path[c.name] for c in golden if c.name in by_path)


def _clear(candidates: Sequence[GoldenCandidate], threshold: float) -> list[GoldenCandidate]:
    """The clearly decided ones; of scores that all lie near, those a golden image may have."""
    for clearance in (GOLDEN_CLEARANCE, GOLDEN_RELATIVE_TOLERANCE):
        found = clear_candidates(candidates, threshold, clearance)
        if found:
            return found
    return []


def _steady(candidates: Sequence[GoldenCandidate], threshold: float) -> list[GoldenCandidate]:
    """Without those so near to the threshold that another CPU's rounding may flip them."""
    tolerance = golden_tolerance(threshold)
    clear = [c for c in candidates if abs(c.converted - threshold) > tolerance]
    return clear or list(candidates)


def _parts(
    run: OpenRun,
    model_file: Path,
    precision: EnginePrecision,
    judged: _Judged,
    golden: Sequence[GoldenCandidate],
) -> BundleParts:
    threshold = judged.threshold
    return BundleParts(
        name=run.path.resolve().name,
        version=metal_edge.__version__,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        model_file=model_file,
        model=run.record.network.model_dump(mode="json"),
        precision=str(precision),
        preprocess=run.preprocess,
        thresholds=Thresholds(
            score=threshold.score,
            false_reject_rate=threshold.false_reject_rate,
            calibration_images=threshold.n,
        ),
        golden=golden,
        provenance={
            "dataset": Path(run.record.dataset).name,
            "run": run.record.fingerprint,
            "checkpoint_sha256": sha256_of(run.path / CHECKPOINT),
            "promise": threshold.statement(),
            "training_images": len(run.record.split["train"]),
        },
    )


def _golden_warnings(bundle: Bundle) -> tuple[str, ...]:
    threshold = bundle.thresholds.score
    if any(image.good and image.score < threshold for image in bundle.golden.images):
        return ()
    return (
        "no good golden image is kept, since all score too near to the threshold: the daemon"
        " cannot prove at start that good parts pass; give more good images with --images",
    )


def _record(
    run: OpenRun,
    source: Path,
    options: BuildOptions,
    int8: Int8Built | None,
    judged: _Judged,
    parity: dict[str, Any],
) -> AbstractContextManager[Path | None]:
    """The calibration's evidence, if it was asked for, to appear with the bundle."""
    if options.record is None or int8 is None:
        return nullcontext()
    record = calibration_record(
        run=run.record.fingerprint,
        model_sha256=sha256_of(source),
        method=options.int8.method,
        frames=int8.frames.records,
        shift=int8.frames.shift,
        ranges=int8.calibrated.ranges,
        zero_range=int8.calibrated.zero_range,
        results={
            "accuracy": int8.accuracy,
            "parity": parity,
            "threshold": {
                "score": judged.threshold.score,
                "false_reject_rate": judged.threshold.false_reject_rate,
                "images": judged.threshold.n,
            },
        },
        symmetric=options.backend == "tensorrt",
    )
    return staged_record(options.record, record)
