"""INT8 for a run: frames that calibrate, a sweep of the blocks, the graph within its budget."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from metal_edge.bundle import sha256_of
from metal_edge.cli.accuracy import CheckSet, Figures
from metal_edge.cli.console import progress, say
from metal_edge.cli.workflow import OpenRun, spread
from metal_edge.data import GoodSplit, Sample, load_dataset
from metal_edge.errors import DataError
from metal_edge.export.precision import Conversion, fp32_blocks, write_int8
from metal_edge.quantize.calibration import MIN_FRAMES, CalibrationMethod, frame_digest
from metal_edge.quantize.frames import (
    SHIFT_LIMIT,
    choose_frames,
    distribution_shift,
    frame_statistics,
)
from metal_edge.quantize.int8 import Calibrated, calibrate
from metal_edge.quantize.record import FrameRecord
from metal_edge.quantize.sweep import (
    AUROC_BUDGET,
    SWEEP_S,
    Budget,
    Choice,
    Effect,
    Row,
    choose,
    try_each,
)

FRAMES = 64
_CANDIDATES = 256
_CHECKED = 120  # pictures, half of them defective, that a choice of blocks is judged on
_SWEPT = (8, 32)  # the fewest and most of them that each block alone is judged on
_SHARE_OF_LIMIT = 0.6  # of the sweep's time that is planned for


@dataclass(frozen=True, slots=True)
class Int8Options:
    """What `build-engine` lets a person choose about INT8."""

    method: CalibrationMethod = CalibrationMethod.MINMAX
    images: Path | None = None
    budget: float = AUROC_BUDGET
    sweep: bool = True


@dataclass(frozen=True, eq=False)
class Frames:
    """What calibrates: uint8 [N, S, S, 3], where each comes from, and how unusual they are."""

    images: NDArray[np.uint8]
    records: tuple[FrameRecord, ...]
    shift: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Int8Built:
    """The written graph, what the manifest says of it, and what a record needs."""

    conversion: Conversion
    calibrated: Calibrated
    frames: Frames
    accuracy: dict[str, Any]


def build_int8(
    run: OpenRun,
    source: Path,
    destination: Path,
    split: GoodSplit,
    options: Int8Options,
    symmetric: bool = False,
) -> Int8Built:
    """Calibrates, sweeps, and writes the INT8 graph that meets the budget.

    Args:
        symmetric: activations will be signed with zero point 0, which the baseline must know.

    Raises:
        DataError: frames that cannot be used, or a budget that no block can meet.
    """
    frames = calibration_frames(run, split, options.images)
    with progress(f"calibrating ({options.method})") as advance:
        calibrated = calibrate(
            source, frames.images, options.method, lambda done, total: advance(done, total, "")
        )
    with tempfile.TemporaryDirectory(prefix="metal-edge-int8-") as folder:
        pick = _Picker(source, calibrated, Path(folder) / "candidate.onnx", options)
        blocks, accuracy = pick.blocks(run, split)
    conversion = write_int8(
        calibrated,
        destination,
        blocks,
        method=options.method,
        frames=len(frames.images),
        symmetric=symmetric,
    )
    kept = accuracy["fp32_blocks"]
    conversion.notes["fp32_islands"] += fp32_blocks(calibrated, kept)
    conversion.notes["distribution_shift"] = round(frames.shift, 3)
    conversion.notes["accuracy"] = accuracy
    warnings = (*frames.warnings, *zero_range_warnings(calibrated), *pick.warnings)
    return Int8Built(
        conversion,
        calibrated,
        Frames(frames.images, frames.records, frames.shift, warnings),
        accuracy,
    )


def zero_range_warnings(calibrated: Calibrated) -> tuple[str, ...]:
    """Layers that the frames never moved: dead ones, or frames that do not show the part."""
    dead = calibrated.zero_range
    if not dead:
        return ()
    return (
        f"{len(dead)} layers stay in higher precision, since their activations are always 0 on the"
        f" calibration frames (first: {dead[0]}): if these frames show the part as the line does,"
        " nothing needs doing",
    )


def judge_golden(
    built: Int8Built,
    graphs: tuple[Path, Path],
    samples: Sequence[Sample],
    run: OpenRun,
    budget: float,
) -> tuple[str, ...]:
    """Measures the graph that is deployed on the golden pictures, by the same budget.

    The budget chose the blocks on many pictures. These few are what every start of the daemon is
    judged by, and none may be lost among the many.

    Args:
        built: its `accuracy` gets `golden`.
        graphs: FP32's and the final one.
        samples: the golden pictures that are files of the data set.

    Returns:
        Warnings.
    """
    checks = CheckSet(samples, run.preprocess)
    if not len(checks):
        return ()
    fp32, final = (checks.measure(graph) for graph in graphs)
    effect = final.effect_against(fp32)
    allowed = Budget(budget, checks.auroc_step).allows(effect)
    built.accuracy["golden"] = {
        "images": len(checks),
        "defective_images": int(checks.defective.sum()),
        "within_budget": allowed,
        **effect.as_dict(),
    }
    if allowed:
        return ()
    return (
        f"on the {len(checks)} golden images INT8 exceeds the accuracy budget ({_words(effect)}):"
        " give more varied calibration images, or build with --precision fp16",
    )


def calibration_frames(run: OpenRun, split: GoodSplit, folder: Path | None) -> Frames:
    """Up to FRAMES distinct good pictures, of the training images or of `folder`.

    Raises:
        DataError: copies in `folder`, or too few distinct pictures.
    """
    candidates = _distinct(split) if folder is None else _from_folder(folder, split)
    samples = spread(tuple(candidates), _CANDIDATES)
    images = run.load(samples, "reading calibration frames")
    first: dict[str, int] = {}
    for index, image in enumerate(images):  # two files may hold one picture
        first.setdefault(frame_digest(image), index)
    if folder is not None and len(first) < len(images):
        raise DataError(f"{folder} holds a picture twice", "give each picture once")
    kept = list(first.values())
    statistics = frame_statistics(images[kept])
    chosen = choose_frames(statistics, FRAMES)
    digests = list(first)
    records = tuple(
        FrameRecord(candidates[samples[kept[c.index]]], digests[c.index], c.reason) for c in chosen
    )
    shift, warnings = 1.0, tuple[str, ...]()
    if chosen and folder is not None:
        training = run.load(spread(split.train, _CANDIDATES), "reading training images")
        picked = statistics[[c.index for c in chosen]]
        shift, where = distribution_shift(picked, frame_statistics(training))
        if shift >= SHIFT_LIMIT:
            warnings = (
                f"the calibration frames in {folder} do not look like the training images: they"
                f" differ {shift:.1f} times as much as those among themselves, most in {where};"
                " INT8 ranges will fit other pictures than the line's",
            )
    return Frames(images[[kept[c.index] for c in chosen]], records, shift, warnings)


def _distinct(split: GoodSplit) -> dict[Sample, str]:
    """Training samples, each picture once, with its file's SHA-256."""
    first: dict[str, Sample] = {}
    for sample in split.train:
        first.setdefault(split.sha256[sample], sample)
    return {sample: digest for digest, sample in first.items()}


def _from_folder(folder: Path, split: GoodSplit) -> dict[Sample, str]:
    """Good samples of a folder but for those that judge the result."""
    judges = {split.sha256[sample] for sample in split.calibration}
    found: dict[str, Sample] = {}
    for sample in load_dataset(folder.expanduser().resolve()).train:
        digest = sha256_of(sample.path)
        if digest in found:
            raise DataError(
                f"calibration frame {sample.path} is a copy of {found[digest].path}",
                "give each picture once",
            )
        found[digest] = sample
    usable = {sample: digest for digest, sample in found.items() if digest not in judges}
    if len(usable) < MIN_FRAMES:
        raise DataError(
            f"{folder} has {len(usable)} distinct good pictures that the run does not hold out,"
            f" INT8 calibration needs {MIN_FRAMES}",
            "record more good parts, or leave out --calibration-images",
        )
    if len(usable) < len(found):
        say(f"{len(found) - len(usable)} pictures of {folder} are held out by the run: left out")
    return usable


class _Picker:
    """Finds the blocks that INT8 may have."""

    def __init__(
        self, source: Path, calibrated: Calibrated, candidate: Path, options: Int8Options
    ) -> None:
        self._source = source
        self._calibrated = calibrated
        self._candidate = candidate
        self._options = options
        self.warnings: list[str] = []

    def blocks(self, run: OpenRun, split: GoodSplit) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Names of the blocks, and the sweep's figures for manifest and output."""
        checks = CheckSet(_samples_to_check(run, split), run.preprocess)
        started = time.monotonic()
        say("measuring fp32 on pictures to compare with ...")
        fp32 = checks.measure(self._source)
        seconds = (time.monotonic() - started) / len(checks)
        budget = Budget(self._options.budget, checks.auroc_step)
        rows: list[Row] = []
        if self._options.sweep:
            rows = self._sweep(checks, seconds)
            say("choosing blocks within the accuracy budget ...")
            choice = choose(rows, lambda blocks: self._effect(checks, fp32, blocks), budget)
        else:
            everything = tuple(self._calibrated.groups)
            effect = self._effect(checks, fp32, everything)
            choice = Choice(everything, (), effect, effect)
            if not budget.allows(effect):
                self.warnings.append(
                    f"INT8 exceeds the accuracy budget ({_words(effect)}): build without --no-sweep"
                )
        return choice.int8, _accuracy(choice, rows, budget, checks, fp32)

    def _sweep(self, checks: CheckSet, seconds: float) -> list[Row]:
        groups = self._calibrated.groups
        affordable = _SHARE_OF_LIMIT * SWEEP_S / len(groups) / max(seconds, 1e-6)
        few = checks.few(int(min(max(affordable, _SWEPT[0]), _SWEPT[1])))
        fp32 = few.measure(self._source)
        with progress("trying each block in INT8 alone") as advance:
            return try_each(
                {block: len(nodes) for block, nodes in groups.items()},
                lambda blocks: self._effect(few, fp32, blocks),
                time.monotonic,
                advance=advance,
            )

    def _effect(self, checks: CheckSet, fp32: Figures, blocks: Sequence[str]) -> Effect:
        self._calibrated.write(self._candidate, blocks)
        return checks.measure(self._candidate).effect_against(fp32)


def _samples_to_check(run: OpenRun, split: GoodSplit) -> tuple[Sample, ...]:
    """Held-out and tested good pictures, and defective ones where the data set has some."""
    test = load_dataset(run.root).test
    defects = tuple(s for s in test if not s.good)
    good = (*split.calibration, *(s for s in test if s.good))
    half = _CHECKED // 2
    return (*spread(good, half if defects else _CHECKED), *spread(defects, half))


def _accuracy(
    choice: Choice, rows: Sequence[Row], budget: Budget, checks: CheckSet, fp32: Figures
) -> dict[str, Any]:
    kept = set(choice.fp32)
    marked = [Row(row.block, row.layers, row.effect, row.block in kept) for row in rows]
    return {
        "images": len(checks),
        "defective_images": int(checks.defective.sum()),
        "fp32": {"image_auroc": _round(fp32.image_auroc), "pixel_auroc": _round(fp32.pixel_auroc)},
        "budget": budget.as_dict(),
        "all_int8": choice.everything.as_dict(),
        "result": choice.effect.as_dict(),
        "int8_blocks": list(choice.int8),
        "fp32_blocks": list(choice.fp32),
        "sweep": [row.as_dict() for row in marked],
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _words(effect: Effect) -> str:
    """An effect as a person reads it."""
    parts = [
        f"map correlation {effect.map_correlation:.4f}",
        f"score change {100 * effect.score_change:.1f} %",
    ]
    if effect.image_auroc_loss is not None:
        parts.append(f"image AUROC loss {effect.image_auroc_loss:.4f}")
    if effect.pixel_auroc_loss is not None:
        parts.append(f"pixel AUROC loss {effect.pixel_auroc_loss:.4f}")
    return ", ".join(parts)


def save_baseline(conversion: Conversion, path: Path) -> Path | None:
    """Writes the plainly rounded graph for the parity gate, if this precision has one."""
    if conversion.baseline is None:
        return None
    onnx.save(conversion.baseline, path)
    return path
