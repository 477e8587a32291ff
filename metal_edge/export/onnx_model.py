"""Checkpoint -> FP32 ONNX -> simplified, each step compared with what it came from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import torch
from numpy.typing import NDArray

from metal_edge.errors import DataError
from metal_edge.export.enlarge_last import enlarge_last
from metal_edge.export.unjoin import unjoin
from metal_edge.files import atomic_file
from metal_edge.models.base import AnomalyModel
from metal_edge.models.scoring import AnomalyScorer
from metal_edge.runtime.onnxruntime_runner import OnnxRuntimeRunner

OPSET = 20  # first with Gelu and in the range that TensorRT 10.3 parses
# Raised when the same checkpoint gives another graph than before, so that a run's is made again.
GRAPH = 3
# FP32 against FP32: both sum a few thousand products in another order.
RELATIVE_TOLERANCE = 1e-3


def onnx_from_model(model: AnomalyModel, batch: int | None = None) -> onnx.ModelProto:
    """Exports pre- and postprocessing and the network as one simplified, checked graph.

    Args:
        batch: images per call, fixed in the graph; None leaves it free, as bundles have it.

    Returns:
        A graph `image` uint8 [batch, S, S, 3] -> `anomaly_map` float32 [batch, S, S],
        `score` float32 [batch].
    """
    scorer = AnomalyScorer(model).eval()
    size = model.config.image_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with _quiet_exporter():
        program = torch.onnx.export(
            scorer,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["anomaly_map", "score"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise DataError("PyTorch exported nothing", "report this with the checkpoint")
    shapes = None if batch is None else {"image": [batch, size, size, 3]}
    simplified, ok = onnxsim.simplify(program.model_proto, overwrite_input_shapes=shapes)
    if not ok:
        raise DataError("onnxsim changed the graph's results", "report this with the checkpoint")
    unjoin(simplified)
    enlarge_last(simplified)
    onnx.checker.check_model(simplified, full_check=True)
    return _without_debug_records(simplified)


def check_parity(
    model: AnomalyModel, path: Path, images: NDArray[np.uint8], batch: int = 1
) -> float:
    """Compares the ONNX file with the PyTorch model on images.

    Args:
        model: the source.
        path: the exported file, run by ONNX Runtime.
        images: uint8 [N, S, S, 3].
        batch: what the file was exported for, if it is fixed there: each image fills a batch,
            whose last place is compared.

    Returns:
        The largest map difference relative to that image's largest map value.

    Raises:
        DataError: it exceeds RELATIVE_TOLERANCE.
    """
    scorer = AnomalyScorer(model).eval()
    differences = []
    with OnnxRuntimeRunner(path) as runner, torch.inference_mode():
        for image in images:
            expected_map, expected_score = (
                t.numpy() for t in scorer(torch.from_numpy(image[None]))
            )
            got = runner.run(np.repeat(image[None], batch, axis=0))[-1]
            scale = max(float(np.abs(expected_map).max()), 1e-6)
            off = np.append(got.anomaly_map - expected_map[0], got.score - expected_score[0])
            differences.append(np.abs(off).max() / scale)
    worst = float(np.max(differences))  # NaN where one is; Python's own max would pass over it
    if not worst <= RELATIVE_TOLERANCE:
        raise DataError(
            f"{path} differs from the checkpoint by {worst:.2g} (relative),"
            f" more than {RELATIVE_TOLERANCE:g}",
            "report this with the checkpoint",
        )
    return worst


def probe_images(size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Adversarial inputs for parity: black, white, noise, extreme contrast. uint8 [4, S, S, 3]."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    checks = np.indices((size, size)).sum(axis=0) % 2 * 255
    return np.stack(
        [
            np.zeros((size, size, 3), np.uint8),
            np.full((size, size, 3), 255, np.uint8),
            noise,
            np.repeat(checks[..., None], 3, axis=2).astype(np.uint8),
        ]
    )


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Writes an ONNX file atomically.

    Raises:
        OutputError: the place cannot be written.
    """
    with atomic_file(path) as staging:
        onnx.save(model, staging)


def _without_debug_records(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops stack traces and source paths: same weights, same bytes, on any machine."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about packages that this project does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
