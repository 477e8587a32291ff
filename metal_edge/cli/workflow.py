"""Steps that several commands share: open a run, export it, score its held-out good parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import metal_edge
from metal_edge.bundle import Bundle, Thresholds, sha256_of
from metal_edge.cli.console import progress, say
from metal_edge.data import Dataset, Sample, load_dataset, load_images, resolve_split
from metal_edge.domain import Preprocess
from metal_edge.errors import DataError, MissingInputError, SettingsError
from metal_edge.evaluation.thresholds import ConformalThreshold, choose_rate, conformal_threshold
from metal_edge.export.build import BundleParts, write_bundle
from metal_edge.export.onnx_model import check_parity as check_export
from metal_edge.export.onnx_model import onnx_from_model, probe_images
from metal_edge.export.precision import EnginePrecision, check_parity, write_precision
from metal_edge.export.tensorrt_int8 import int8_for_tensorrt
from metal_edge.files import atomic_file, write_text
from metal_edge.imaging import image_info
from metal_edge.models.checkpoint import load_checkpoint
from metal_edge.runtime.base import Runner
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner
from metal_edge.training.run import (
    CHECKPOINT,
    RECORD,
    RunRecord,
    is_complete,
    read_record,
)

ONNX = "model.onnx"
THRESHOLDS = "thresholds.json"
GOLDEN_GOOD = 6
GOLDEN_BAD = 4
CALIBRATION_FRAMES = 64


@dataclass(frozen=True)
class OpenRun:
    """A finished run and the data behind it."""

    path: Path
    record: RunRecord
    root: Path

    @property
    def preprocess(self) -> Preprocess:
        """How its frames become the model's input."""
        return self.record.preprocess

    def held_out(self) -> tuple[Sample, ...]:
        """Good images that neither training nor early stopping has seen."""
        return resolve_split(self.record.split, self.root).calibration

    def load(self, samples: tuple[Sample, ...], title: str) -> NDArray[np.uint8]:
        """uint8 [N, S, S, 3] of some samples."""
        size = self.preprocess
        with progress(title) as advance:
            return load_images(
                samples,
                size.width,
                size.height,
                size.crop,
                lambda done, total: advance(done, total, ""),
            )


def open_run(path: Path, data: Path | None = None) -> OpenRun:
    """Opens a finished run.

    Args:
        path: the run's folder.
        data: where its images lie now, if they moved.

    Raises:
        MissingInputError: no run there, or training did not finish.
    """
    record = read_record(path)
    if not is_complete(path):
        raise MissingInputError(
            f"training of {path} is not finished",
            f"go on with `metal-edge train {record.dataset} -o {path}`",
        )
    return OpenRun(path, record, data.resolve() if data else Path(record.dataset))


def is_run(path: Path) -> bool:
    """Tells a run from a bundle."""
    return (path / RECORD).is_file()


def ensure_onnx(run: OpenRun) -> Path:
    """RUN/model.onnx of the current checkpoint, exported and compared unless it is there intact."""
    path = run.path / ONNX
    note = run.path / f"{ONNX}.source"
    checkpoint = sha256_of(run.path / CHECKPOINT)

    def proof() -> str:
        return f"{checkpoint}  {CHECKPOINT}\n{sha256_of(path)}  {ONNX}\n"

    if path.is_file() and note.is_file() and note.read_bytes() == proof().encode("ascii"):
        return path
    export_run(run, path)
    write_text(note, proof())
    return path


def export_run(run: OpenRun, path: Path) -> float:
    """Writes the FP32 graph of a run to `path`; returns the parity figure."""
    say("exporting the checkpoint to ONNX (FP32) ...")
    model, _ = load_checkpoint(run.path / CHECKPOINT)
    held_out = run.load(run.held_out()[:4], "reading held-out images")
    images = np.concatenate([probe_images(run.preprocess.width), held_out])
    with atomic_file(path) as staged:  # becomes `path` only when it agrees
        staged.write_bytes(onnx_from_model(model).SerializeToString())
        return check_export(model, staged, images)


def score(runner: Runner, images: NDArray[np.uint8], title: str) -> NDArray[np.float64]:
    """Scores of uint8 [N, S, S, 3] images, float64 [N]."""
    scores = []
    with progress(title) as advance:
        for done, image in enumerate(images, start=1):
            scores.append(runner.run(image[None])[0].score)
            advance(done, len(images), "")
    return np.array(scores)


def calibrate_run(
    run: OpenRun, rate: float | None, runner: Runner, extra: Path | None = None
) -> ConformalThreshold:
    """Split conformal threshold from the run's held-out good images and `runner`.

    Args:
        rate: wanted false-reject rate; None takes the tightest that the images support.
        extra: a folder of further good images, never trained on.

    Raises:
        MetalEdgeError: too few images for the rate; says how many are needed.
    """
    samples = run.held_out()
    if extra is not None:
        samples = (*samples, *_unseen(run, extra))
    images = run.load(samples, "reading held-out good images")
    scores = score(runner, images, "scoring held-out good images")
    wanted = choose_rate(len(scores)) if rate is None else rate
    return conformal_threshold(scores, wanted)


def check_sizes(samples: tuple[Sample, ...], preprocess: Preprocess) -> None:
    """Refuses pictures that the daemon would call `wrong_frame_size`: figures would not hold.

    Raises:
        DataError: names the first one.
    """
    wanted = (preprocess.source_width, preprocess.source_height)
    if None in wanted:
        return
    for sample in samples:
        info = image_info(sample.path)
        if (info.width, info.height) != wanted:
            raise DataError(
                f"{sample.path} is {info.width}x{info.height}, the model was trained on"
                f" {wanted[0]}x{wanted[1]}",
                "give pictures as the line's camera takes them",
            )


def _unseen(run: OpenRun, folder: Path) -> tuple[Sample, ...]:
    """Good images of `folder` that are in no part of the run's split, each once.

    Calibrating on a picture that was trained on would promise a rate that does not hold.
    """
    known = {entry["sha256"] for side in run.record.split.values() for entry in side}
    fresh: dict[str, Sample] = {}
    for sample in load_dataset(folder.expanduser().resolve()).train:
        digest = sha256_of(sample.path)
        if digest not in known:
            fresh.setdefault(digest, sample)
    if not fresh:
        raise DataError(
            f"{folder} has no good image that the run has not seen", "record new good parts"
        )
    unseen = tuple(fresh.values())
    check_sizes(unseen, run.preprocess)
    return unseen


def save_threshold(run: OpenRun, threshold: ConformalThreshold) -> None:
    """Remembers the FP32 model's threshold in the run."""
    content = {
        "score": threshold.score,
        "false_reject_rate": threshold.false_reject_rate,
        "calibration_images": threshold.n,
        "statement": threshold.statement(),
    }
    write_text(run.path / THRESHOLDS, json.dumps(content, indent=2) + "\n")


def saved_threshold(run: OpenRun) -> Thresholds | None:
    """What `save_threshold` wrote, if anything.

    Raises:
        DataError: the file is damaged.
    """
    path = run.path / THRESHOLDS
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        content.pop("statement", None)
        return Thresholds.model_validate(content)
    except (ValueError, AttributeError) as error:  # no JSON, no object, or other fields
        raise DataError(
            f"{path} is damaged ({str(error).splitlines()[0]})",
            f"write it again with `metal-edge calibrate {run.path}`",
        ) from error


@dataclass(frozen=True)
class Built:
    """A bundle and the figures that a person wants to see about it."""

    bundle: Bundle
    threshold: ConformalThreshold
    parity: dict[str, Any]
    fp32_bytes: int


def build_bundle(
    run: OpenRun,
    destination: Path,
    precision: EnginePrecision,
    rate: float | None,
    extra: Path | None = None,
    backend: str = "onnxruntime",
) -> Built:
    """Run -> FP32 ONNX -> precision -> parity -> threshold on the final graph -> bundle."""
    source = ensure_onnx(run)
    staged = run.path / f".{precision}.onnx"
    split = resolve_split(run.record.split, run.root)
    try:
        frames = run.load(_spread(split.train, CALIBRATION_FRAMES), "reading calibration frames")
        say(f"writing {precision} into the graph ...")
        notes = write_precision(source, staged, precision, frames)
        if backend == "tensorrt" and precision is EnginePrecision.INT8:
            notes |= int8_for_tensorrt(source, staged)
        held_out = run.load(split.calibration, "reading held-out good images")
        parity = check_parity(source, staged, precision, held_out)
        with OnnxRuntimeRunner(staged) as runner:
            threshold = calibrate_run(run, rate, runner, extra)
            parts = _parts(run, staged, precision, threshold, held_out)
            parts.provenance.update({"precision": notes, "parity": parity.as_dict()})
            bundle = write_bundle(destination, parts, runner)
    finally:
        staged.unlink(missing_ok=True)
    return Built(bundle, threshold, parity.as_dict(), source.stat().st_size)


def _parts(
    run: OpenRun,
    model_file: Path,
    precision: EnginePrecision,
    threshold: ConformalThreshold,
    held_out: NDArray[np.uint8],
) -> BundleParts:
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
        golden_good=held_out[:GOLDEN_GOOD],
        golden_bad=_golden_bad(run, held_out),
        provenance={
            "dataset": Path(run.record.dataset).name,
            "run": run.record.fingerprint,
            "checkpoint_sha256": sha256_of(run.path / CHECKPOINT),
            "promise": threshold.statement(),
            "training_images": len(run.record.split["train"]),
        },
    )


def _golden_bad(run: OpenRun, held_out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Defective parts where the data set has some, and a negative picture that no line shows.

    The negative makes sure that every bundle holds an image far above its threshold.
    """
    negative = 255 - held_out[:1]
    defects = [s for s in _dataset(run).test if not s.good]
    if not defects:
        return negative
    chosen = _spread(tuple(defects), GOLDEN_BAD - 1)
    return np.concatenate([run.load(chosen, "reading golden images"), negative])


def _dataset(run: OpenRun) -> Dataset:
    return load_dataset(run.root)


def samples_to_evaluate(run: OpenRun, data: Path | None) -> tuple[Sample, ...]:
    """What to evaluate on: the test part of `data`, or of the run's own data set."""
    root = data.expanduser().resolve() if data else run.root
    samples = load_dataset(root).test
    if not samples:
        raise SettingsError(
            f"{root} has no test folder to evaluate on",
            "add test/good and test/<defect> (MVTec layout), or give another --data",
        )
    return samples


def _spread(samples: tuple[Sample, ...], count: int) -> tuple[Sample, ...]:
    """Up to `count` samples, evenly spaced over the (sorted) whole."""
    if len(samples) <= count:
        return samples
    picks = np.linspace(0, len(samples) - 1, count).round().astype(int)
    return tuple(samples[i] for i in picks)
