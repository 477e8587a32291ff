"""Steps that several commands share: open a run, export it, score its held-out good parts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from metal_edge.bundle import Thresholds, sha256_of
from metal_edge.cli.console import progress, say
from metal_edge.data import Sample, load_dataset, load_images, resolve_split
from metal_edge.domain import Preprocess
from metal_edge.errors import DataError, MissingInputError, SettingsError
from metal_edge.evaluation.thresholds import ConformalThreshold, choose_rate, conformal_threshold
from metal_edge.export.onnx_model import GRAPH, onnx_from_model, probe_images
from metal_edge.export.onnx_model import check_parity as check_export
from metal_edge.files import atomic_file, write_text
from metal_edge.imaging import image_info
from metal_edge.models.checkpoint import load_checkpoint
from metal_edge.runtime.base import Runner
from metal_edge.training.run import (
    CHECKPOINT,
    RECORD,
    RunRecord,
    is_complete,
    read_record,
)

ItemT = TypeVar("ItemT")

ONNX = "model.onnx"
THRESHOLDS = "thresholds.json"


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
    """RUN/model.onnx of the current checkpoint, exported and compared unless it is there intact.

    One that an older version of the exporter made is made again.
    """
    path = run.path / ONNX
    note = run.path / f"{ONNX}.source"
    checkpoint = sha256_of(run.path / CHECKPOINT)

    def proof() -> str:
        return f"{checkpoint}  {CHECKPOINT}\n{sha256_of(path)}  {ONNX}\ngraph {GRAPH}\n"

    if path.is_file() and note.is_file() and note.read_bytes() == proof().encode("ascii"):
        return path
    export_run(run, path)
    write_text(note, proof())
    return path


def export_run(run: OpenRun, path: Path, batch: int | None = None) -> float:
    """Writes the FP32 graph of a run to `path`; returns the parity figure.

    Args:
        batch: fixed in the graph; None leaves it free.
    """
    say("exporting the checkpoint to ONNX (FP32) ...")
    model, _ = load_checkpoint(run.path / CHECKPOINT)
    held_out = run.load(run.held_out()[:4], "reading held-out images")
    images = np.concatenate([probe_images(run.preprocess.width), held_out])
    with atomic_file(path) as staged:  # becomes `path` only when it agrees
        staged.write_bytes(onnx_from_model(model, batch).SerializeToString())
        return check_export(model, staged, images, batch or 1)


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
        samples = (*samples, *unseen(run, extra))
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


def unseen(run: OpenRun, folder: Path) -> tuple[Sample, ...]:
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


def spread(items: tuple[ItemT, ...], count: int) -> tuple[ItemT, ...]:
    """Up to `count` of them, evenly spaced over the (sorted) whole."""
    if len(items) <= count:
        return items
    picks = np.linspace(0, len(items) - 1, count).round().astype(int)
    return tuple(items[i] for i in picks)
