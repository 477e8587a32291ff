"""What a model costs: multiply-accumulates, and milliseconds side by side with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from metal_edge.models.base import AnomalyModel
from metal_edge.models.scoring import AnomalyScorer
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

WARM_UP = 5
ROUNDS = 40


def multiply_accumulates(model: AnomalyModel) -> int:
    """MACs of one image from bytes to score: convolutions and matrix products, counted by PyTorch.

    Element-wise work, normalisation and softmax do not count; the matrix products that enlarge
    and smooth the map do.
    """
    size = model.config.image_size
    image = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    scorer = AnomalyScorer(model).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        scorer(image)
    return int(counter.get_total_flops()) // 2


def interleaved_ms(
    models: Mapping[str, Path],
    images: Callable[[int], NDArray[np.uint8]],
    seconds: Callable[[], float],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    on_round: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, float]:
    """Median milliseconds per image at batch 1, the models taking turns.

    One after the other in every round, so that what slows the machine down for a while slows
    all of them down alike.

    Args:
        models: ONNX files by name.
        images: side in pixels -> one image, uint8 [1, S, S, 3].
        seconds: a monotonic clock.
        threads: of ONNX Runtime.
        rounds: timed ones, after WARM_UP untimed ones.
        on_round: called with (rounds done, rounds in all).
    """
    runners = {name: OnnxRuntimeRunner(path, threads) for name, path in models.items()}
    inputs = {name: images(runner.input_shape[0]) for name, runner in runners.items()}
    took: dict[str, list[float]] = {name: [] for name in models}
    for index in range(WARM_UP + rounds):
        for name, runner in runners.items():
            begun = seconds()
            runner.run(inputs[name])
            elapsed_ms = 1000 * (seconds() - begun)
            if index >= WARM_UP:
                took[name].append(elapsed_ms)
        on_round(index + 1, WARM_UP + rounds)
    return {name: median(values) for name, values in took.items()}
