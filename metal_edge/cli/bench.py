"""`metal-edge bench`: bundles timed in turn within one run, so that ratios mean something."""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from metal_edge.bundle import Bundle
from metal_edge.cli.console import print_json, progress, say_result
from metal_edge.runtime.load import load_runner

WARM_UP = 10


def run_bench(bundles: list[Path], frames: int, threads: int, batch: int, as_json: bool) -> None:
    """Times every bundle on the same random frames and prints percentiles and ratios.

    Values of the pixels do not change what these graphs compute, so noise serves as input.
    """
    opened = [Bundle.open(path) for path in bundles]
    with ExitStack() as stack:
        runners = [stack.enter_context(load_runner(b, threads)) for b in opened]
        random = np.random.default_rng(0)
        inputs = [
            random.integers(0, 256, (batch, *runner.input_shape), dtype=np.uint8)
            for runner in runners
        ]
        times = np.empty((frames, len(runners)))
        with progress("timing") as advance:
            for turn in range(-WARM_UP, frames):
                for column, (runner, images) in enumerate(zip(runners, inputs, strict=True)):
                    start = time.perf_counter()
                    runner.run(images)
                    if turn >= 0:
                        times[turn, column] = 1000 * (time.perf_counter() - start)
                if turn >= 0:
                    advance(turn + 1, frames, "")
    rows = [_row(bundle, times[:, i], times[:, 0], batch) for i, bundle in enumerate(opened)]
    result = {
        "frames": frames,
        "threads": threads,
        "batch": batch,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "bundles": rows,
    }
    if as_json:
        print_json(result)
    else:
        say_result(_table(rows, result))


def _row(bundle: Bundle, ms: Any, first: Any, batch: int) -> dict[str, Any]:
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    return {
        "bundle": str(bundle.path),
        "precision": bundle.manifest.precision,
        "model_mb": round(bundle.manifest.files["model.onnx"].size / 1e6, 2),
        "p50_ms": round(float(p50), 3),
        "p90_ms": round(float(p90), 3),
        "p99_ms": round(float(p99), 3),
        "images_per_s": round(1000 * batch / float(np.mean(ms)), 1),
        "times_faster_than_first": round(float(np.median(first / ms)), 2),
    }


def _table(rows: list[dict[str, Any]], result: dict[str, Any]) -> str:
    columns = f"{'MB':>7} {'p50 ms':>8} {'p99 ms':>8} {'img/s':>8} {'x':>6}"
    lines = [f"{'bundle':<32} {'precision':<9} {columns}"]
    lines += [
        f"{row['bundle'][-32:]:<32} {row['precision']:<9} {row['model_mb']:>7.1f}"
        f" {row['p50_ms']:>8.2f} {row['p99_ms']:>8.2f} {row['images_per_s']:>8.1f}"
        f" {row['times_faster_than_first']:>6.2f}"
        for row in rows
    ]
    lines.append(
        f"{result['frames']} frames each in turn, batch {result['batch']}, {result['threads']}"
        " thread(s); x = median ratio to the first bundle, pair by pair"
    )
    return "\n".join(lines)
