"""Bytes and multiply-accumulates per frame on paper, and what memory bandwidth makes of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metal_edge.export.graph import read_graph
from metal_edge.export.onnx_model import onnx_from_model, save_model
from metal_edge.export.precision import EnginePrecision, write_precision
from metal_edge.export.tensorrt_int8 import int8_for_tensorrt
from metal_edge.export.traffic import Traffic, traffic
from metal_edge.models.base import AnomalyModel
from metal_edge.models.registry import build_model
from tools.bench.modules import MODULES, Module
from tools.results.catalogue import Catalogue

CALIBRATION_FRAMES = 16
# ONNX Runtime and TensorRT have INT8 graphs of their own; the boards below run the latter.
TENSORRT_INT8 = "int8, TensorRT"


@dataclass(frozen=True)
class Cost:
    """One model at one precision."""

    model: str
    precision: str
    file_bytes: int
    traffic: Traffic


def networks(names: Sequence[str] | None) -> dict[str, AnomalyModel]:
    """The models of the results page, with random weights: what a frame costs is the same.

    PatchCore is left out: its size follows from the pictures.

    Raises:
        SettingsError: an unknown name.
    """
    known = Catalogue()
    found = {}
    for name in known.choose(names):
        network = known.variant(name).network
        if network is not None and network.kind != "patchcore":  # type: ignore[attr-defined]
            torch.manual_seed(0)
            found[name] = build_model(network).eval()  # type: ignore[arg-type]
    return found


def costs(
    models: Mapping[str, AnomalyModel], on_graph: Callable[[int, int], None] = lambda _d, _t: None
) -> list[Cost]:
    """Exports every model at every precision and counts; see `export.traffic` for the rules.

    Args:
        on_graph: called with (graphs done, graphs in all).
    """
    found: list[Cost] = []

    def count(model: str, precision: str, path: Path) -> None:
        found.append(Cost(model, precision, path.stat().st_size, traffic(read_graph(path))))
        on_graph(len(found), len(models) * (len(EnginePrecision) + 1))

    with tempfile.TemporaryDirectory(prefix="metal-edge-paper-") as folder:
        for name, model in models.items():
            source = Path(folder) / "model.onnx"
            save_model(onnx_from_model(model), source)
            size = model.config.image_size
            # Noise: scales do not matter here, only where they stand.
            shape = (CALIBRATION_FRAMES, size, size, 3)
            frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            for precision in EnginePrecision:
                path = Path(folder) / f"{precision}.onnx"
                write_precision(source, path, precision, frames)
                count(name, str(precision), path)
            calibrated = Path(folder) / f"{EnginePrecision.INT8}.onnx"
            int8_for_tensorrt(source, calibrated)
            count(name, TENSORRT_INT8, calibrated)
    return found


def floor_ms(count: float, module: Module) -> float:
    """Milliseconds that so many bytes need at the module's full bandwidth."""
    return 1000 * count / (module.bandwidth * 1e9)


def as_markdown(found: Sequence[Cost]) -> str:
    """Two tables and the sources of the bandwidths."""
    rows = [
        "| model | precision | file, MB | constants, MB | activations, MB | together, MB |"
        " at least, MB | MMAC (INT8 / FP16 / FP32) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows += [_row(cost) for cost in found]
    heads = " | ".join(f"{m.name}, {m.bandwidth:g} GB/s" for m in MODULES)
    floors = [f"| model | precision | {heads} |", "|---|---|" + "---|" * len(MODULES)]
    for cost in found:
        cells = " | ".join(
            f"{floor_ms(cost.traffic.least_bytes, m):.2f} to"
            f" {floor_ms(cost.traffic.total_bytes, m):.2f}"
            for m in MODULES
        )
        floors.append(f"| {cost.model} | {cost.precision} | {cells} |")
    sources = [f"* {m.name}: {m.source}." for m in MODULES]
    return "\n".join([*rows, "", "Milliseconds per frame, batch 1:", "", *floors, "", *sources])


def _row(cost: Cost) -> str:
    found = cost.traffic
    constants = sum(found.weights.values())
    macs = [round(found.macs.get(kind, 0) / 1e6) for kind in ("int8", "fp16", "fp32")]
    numbers = (cost.file_bytes, constants, found.total_bytes - constants)
    cells = [f"{n / 1e6:.1f}" for n in (*numbers, found.total_bytes, found.least_bytes)]
    shares = " / ".join(str(number) for number in macs)
    return f"| {cost.model} | {cost.precision} | {' | '.join(cells)} | {shares} |"
