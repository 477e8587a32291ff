"""PatchCore on the same pictures: anomalib's own where it was set up, else a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from metal_edge.cli.console import say
from metal_edge.data import load_images
from metal_edge.errors import DataError, MetalEdgeError
from metal_edge.evaluation.evaluate import evaluate
from metal_edge.export.onnx_model import onnx_from_model, save_model
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner
from metal_edge.training.config import TrainConfig
from tools.bench.adapt import Resized, from_anomalib
from tools.bench.case import Case
from tools.bench.lines import Detection
from tools.bench.openvino_runner import OpenVinoRunner, openvino_version
from tools.results.fit import Hooks, fit
from tools.results.patchcore import PatchCoreConfig

ONNX_RUNTIME = "ONNX Runtime"
SIDE = 256  # of the frame that every contender gets
TOKENS = (SIDE // 8) ** 2  # that anomalib's PatchCore has per image, at stride 8
# As many remembered tokens as in the figure that the bar names: 2 % of the tokens of 60 images.
REMEMBERED = 1228


@dataclass(frozen=True)
class Rival:
    """A filled PatchCore.

    Attributes:
        onnx: FP32, takes frames of SIDE.
        anomalib: whether it is anomalib's own.
        what: in words.
        detection: on the test pictures.
    """

    onnx: Path
    anomalib: bool
    what: str
    detection: Detection


def comparable(case: Case) -> bool:
    """Whether whole pictures are seen, and masks show where the defects are."""
    has_masks = any(sample.mask is not None for sample in case.dataset.test)
    return case.run.preprocess.crop is None and has_masks


def make_rival(case: Case, folder: Path, environment: Path | None, hooks: Hooks) -> Rival:
    """Fills PatchCore's memory from the case's good pictures and exports it.

    Args:
        environment: a virtual environment with anomalib; None takes the stand-in.

    Raises:
        MetalEdgeError: anomalib's side failed; its words are on the terminal.
    """
    path = folder / "patchcore.onnx"
    if environment is None:
        fitted = fit(
            case.dataset.root, PatchCoreConfig(), TrainConfig(), folder / "patchcore", hooks
        )
        save_model(onnx_from_model(fitted.model), path)
        what = "stand-in: tools/results/patchcore.py, exported by our exporter"
    else:
        save_model(from_anomalib(_run_anomalib(case, folder, environment)), path)
        what = f"anomalib {_anomalib_version(environment)}, its own ONNX export"
    with OnnxRuntimeRunner(path) as runner:
        found = detection(case, runner, hooks)
    return Rival(path, environment is not None, what, found)


def detection(case: Case, runner: Runner, hooks: Hooks) -> Detection:
    """What a runner finds on the test pictures.

    Args:
        runner: takes frames of SIDE.
    """
    with hooks.progress("evaluating") as advance:
        result = evaluate(
            runner,
            case.dataset.test,
            SIDE,
            SIDE,
            None,
            threshold=None,
            batch=1,  # anomalib's export takes no more
            progress=hooks.counted(advance),
        )
    if result.image_auroc is None or result.pixel_auroc is None:
        reason = "; ".join(result.not_computed.values())
        raise DataError(f"{case.dataset.root} cannot be evaluated ({reason})", "give another run")
    return Detection(result.image_auroc, result.pixel_auroc)


@contextmanager
def contenders(rival: Rival, ours: Mapping[str, Case]) -> Iterator[dict[str, Runner]]:
    """Everybody who is timed, all taking frames of SIDE.

    Returns:
        By name: the rival's back ends, as in `engines`; the INT8 bundle of each of `ours`.
    """
    with ExitStack() as stack:
        found: dict[str, Runner] = {}
        for name, case in ours.items():
            inner = load_runner(case.bundles["int8"], threads=1)
            found[name] = stack.enter_context(Resized(inner, SIDE))
        for engine in engines():
            found[engine] = stack.enter_context(_open(engine, rival.onnx))
        yield found


def engines() -> list[str]:
    """The back ends that a rival is timed in."""
    version = openvino_version()
    return [ONNX_RUNTIME, *([] if version is None else [f"OpenVINO {version}"])]


def _open(engine: str, path: Path) -> Runner:
    return OnnxRuntimeRunner(path) if engine == ONNX_RUNTIME else OpenVinoRunner(path)


def _run_anomalib(case: Case, folder: Path, environment: Path) -> onnx.ModelProto:
    out = folder / "anomalib"
    out.mkdir(parents=True, exist_ok=True)
    images = load_images(case.dataset.train, SIDE, SIDE, None)
    np.save(out / "train.npy", images)
    ratio = min(REMEMBERED / (len(images) * TOKENS), 1.0)
    words = [str(environment / "bin" / "python"), "-m", "tools.bench.anomalib_export"]
    words += [str(out / "train.npy"), str(out), f"{ratio:.6f}"]
    say(f"filling anomalib's PatchCore with {len(images)} pictures, minutes")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        words, cwd=root, stdout=sys.stderr, env=os.environ | {"PYTHONPATH": str(root)}, check=False
    )
    if done.returncode != 0:
        raise MetalEdgeError(
            f"anomalib's PatchCore ended with exit code {done.returncode}", "see its message above"
        )
    return onnx.load(out / "weights" / "onnx" / "model.onnx")


def _anomalib_version(environment: Path) -> str:
    found = sorted(environment.glob("lib/python*/site-packages/anomalib-*.dist-info"))
    if not found:
        raise MetalEdgeError(f"no anomalib in {environment}", "run `make bench ANOMALIB=1`")
    return found[-1].name.removeprefix("anomalib-").removesuffix(".dist-info")
