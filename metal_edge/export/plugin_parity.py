"""The parity gate of the plugin's INT8 attention, before any device has seen it.

`--attention auto` may keep a plan in which attention reads and writes INT8, which the graph of
the bundle does not. So that graph is made here as it would be on the device, its attention is
spelt out in ONNX's own operators (`attention_spelt`), and it has to pass the same gate: held-out
and adversarial pictures against FP32 within twice plain rounding, golden images as stored. What
fails is no candidate; the bundle has TensorRT's own attention, as without a plugin.

It judges the numbers that INT8 attention has by its specification, not a kernel: that is the
golden images' part, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from metal_edge.export.attention_spelt import spell_out
from metal_edge.export.attention_variants import plugin_graphs
from metal_edge.export.parity import (
    Advance,
    GoldenCandidate,
    ParityError,
    compare,
    require_parity,
)
from metal_edge.export.tensorrt_attention import PLUGIN_INT8
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

_WHAT = "int8 with the plugin's attention"
_REMEDY = "build with --attention native"


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What the gate judges with.

    Attributes:
        source: the FP32 graph.
        converted: the INT8 graph of the bundle.
        baseline: the plainly rounded graph.
        held_out, adversarial: uint8 [N, S, S, 3].
        golden: with the scores that the bundle stores.
        threshold, tolerance: of the bundle, in units of the score.
    """

    source: Path
    converted: Path
    baseline: Path | None
    held_out: NDArray[np.uint8]
    adversarial: NDArray[np.uint8]
    golden: Sequence[GoldenCandidate]
    threshold: float
    tolerance: float


def judge_int8_attention(trial: Trial, advance: Advance | None = None) -> dict[str, Any] | None:
    """Runs the gate.

    Returns:
        For the manifest: how many attentions are INT8, the parity figures, and `refused`, why
        it is no candidate, or None. None in place of all that where no attention can be INT8.
    """
    graphs, _ = plugin_graphs(onnx.load(trial.converted))
    graph = next((g for g in graphs if g.name == PLUGIN_INT8), None)
    if graph is None:
        return None
    found: dict[str, Any] = {"attentions": graph.notes["replaced"], "refused": None}
    with TemporaryDirectory(prefix="metal-edge-") as folder:
        path = Path(folder) / "plugin-int8.onnx"
        onnx.save(spell_out(graph.model), path)
        held_out = compare(trial.source, path, trial.baseline, trial.held_out, advance)
        adversarial = compare(trial.source, path, trial.baseline, trial.adversarial)
        try:
            parity = require_parity("int8", held_out, adversarial, _WHAT)
            worst = _check_golden(path, trial)
        except ParityError as error:
            return found | {"refused": error.what}
    return found | {"parity": parity.as_dict(), "worst_golden_difference": round(worst, 6)}


def _check_golden(path: Path, trial: Trial) -> float:
    """What the device will ask of the plan; the largest difference of a score."""
    worst = 0.0
    with OnnxRuntimeRunner(path) as runner:
        for golden in trial.golden:
            score = runner.run(golden.image[None])[0].score
            off = abs(score - golden.converted)
            same = (score < trial.threshold) == (golden.converted < trial.threshold)
            if not (same and off <= trial.tolerance):  # also when a score is NaN
                raise ParityError(
                    f"{golden.name} scores {score:.6g} in {_WHAT}, expected {golden.converted:.6g}"
                    f" within {trial.tolerance:.2g}",
                    _REMEDY,
                )
            worst = max(worst, off)
    return worst
