"""The PatchCore of tools/results on the same pictures, and what both detect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metal_edge.errors import DataError
from metal_edge.evaluation.evaluate import evaluate
from metal_edge.export.onnx_model import onnx_from_model, save_model
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner
from metal_edge.training.config import TrainConfig
from tools.bench.case import Case
from tools.bench.lines import Detection
from tools.results.fit import Hooks, fit
from tools.results.patchcore import PatchCoreConfig


@dataclass(frozen=True)
class Rival:
    """PatchCore's FP32 graph, and what it and the INT8 bundle find on the test pictures."""

    onnx: Path
    theirs: Detection
    ours: Detection


def make_rival(case: Case, folder: Path, hooks: Hooks) -> Rival | None:
    """Fills PatchCore's memory from the case's good pictures and exports it.

    Returns:
        None where the case's pictures do not have the size that PatchCore works at, or the set
        has no masks: nothing would be comparable.
    """
    config = PatchCoreConfig()
    size = case.run.preprocess
    if (size.width, size.height) != (config.image_size,) * 2 or size.crop is not None:
        return None
    if not any(sample.mask is not None for sample in case.dataset.test):
        return None
    fitted = fit(case.dataset.root, config, TrainConfig(), folder / "patchcore", hooks)
    path = folder / "patchcore.onnx"
    save_model(onnx_from_model(fitted.model), path)
    with OnnxRuntimeRunner(path) as theirs, load_runner(case.bundles["int8"]) as ours:
        return Rival(path, _detection(case, theirs, hooks), _detection(case, ours, hooks))


def _detection(case: Case, runner: Runner, hooks: Hooks) -> Detection:
    size = case.run.preprocess
    with hooks.progress("evaluating") as advance:
        result = evaluate(
            runner,
            case.dataset.test,
            size.width,
            size.height,
            size.crop,
            threshold=None,
            progress=hooks.counted(advance),
        )
    if result.image_auroc is None or result.pixel_auroc is None:
        reason = "; ".join(result.not_computed.values())
        raise DataError(f"{case.dataset.root} cannot be evaluated ({reason})", "give another run")
    return Detection(result.image_auroc, result.pixel_auroc)
