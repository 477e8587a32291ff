"""What is measured: a run of the default network, and its bundles."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metal_edge.bundle import Bundle
from metal_edge.cli.console import progress, say
from metal_edge.cli.workflow import OpenRun, open_run
from metal_edge.data import Dataset, load_dataset, load_images
from metal_edge.demo.dataset import write_dataset
from metal_edge.errors import ExitCode, MetalEdgeError, SettingsError

SEED = 11
TRAIN_GOOD, TEST_GOOD, PER_DEFECT = 200, 30, 6
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Case:
    """A finished run, its data and one bundle per precision."""

    run: OpenRun
    dataset: Dataset
    bundles: dict[str, Bundle]

    def frame(self) -> NDArray[np.uint8]:
        """One good test picture at the model's input size, uint8 [1, S, S, 3]."""
        size = self.run.preprocess
        return load_images(self.dataset.test[:1], size.width, size.height, size.crop)


def prepare(
    folder: Path,
    run: Path | None,
    minutes: float,
    *,
    preset: str = "products",
    data: Path | None = None,
) -> Case:
    """Trains on the simulated line, unless a run is given, and builds the bundles.

    Args:
        folder: for pictures, run and bundles; what is there is used again.
        run: a finished run to measure in place of a fresh one.
        minutes: training budget.
        preset: which network of `metal-features` is trained.
        data: pictures to train on in place of the simulated line.

    Raises:
        MetalEdgeError: a command failed; its message is on the terminal.
    """
    if run is None:
        data, run = data or folder / "line", folder / f"run-{preset}-{minutes:g}"
        if not data.is_dir():
            with progress("rendering the simulated line") as advance:
                write_dataset(
                    data,
                    SEED,
                    TRAIN_GOOD,
                    TEST_GOOD,
                    PER_DEFECT,
                    lambda done, total: advance(done, total, ""),
                )
        given = ("--preset", preset, "--max-minutes", f"{minutes:g}")
        _metal_edge("train", data, "-o", run, *given)
    opened = open_run(run)
    dataset = load_dataset(opened.root)
    if not dataset.test:
        raise SettingsError(f"{opened.root} has no test pictures", "give the run of a full set")
    bundles = {}
    for precision in PRECISIONS:
        bundle = folder / f"{preset}-{precision}.bundle"
        _metal_edge("build-engine", run, "--precision", precision, "-o", bundle)
        bundles[precision] = Bundle.open(bundle)
    return Case(opened, dataset, bundles)


def _metal_edge(*arguments: object) -> None:
    words = [str(word) for word in arguments]
    say("$ metal-edge " + " ".join(words))
    done = subprocess.run(
        [sys.executable, "-m", "metal_edge", *words], stdout=sys.stderr, check=False
    )
    if done.returncode == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise MetalEdgeError(
            f"metal-edge {words[0]} ended with exit code {done.returncode}", "see its message above"
        )
