"""`metal-edge bench`: bundles timed in turn within one run, so that ratios mean something."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metal_edge.bundle import Bundle
from metal_edge.cli.console import print_json, progress, say_result
from metal_edge.errors import SettingsError, UnavailableError
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.tensorrt_runner import TensorRtRunner
from metal_edge.runtime.timing import take_turns

CHILD_LIMIT_S = 120.0


def run_bench(
    bundles: list[Path], frames: int, threads: int, batches: list[int], as_json: bool
) -> None:
    """Times every bundle on the same random frames and prints percentiles and ratios.

    Values of the pixels do not change what these graphs compute, so noise serves as input.

    Args:
        frames: timed calls per bundle and batch size.
        batches: images per call, one table row per bundle each.

    Raises:
        SettingsError: a bundle does not take that many images at once.
    """
    opened = [Bundle.open(path) for path in bundles]
    batches = list(dict.fromkeys(batches))
    rows = []
    with ExitStack() as stack:
        runners = [stack.enter_context(load_runner(b, threads)) for b in opened]
        with progress("timing") as advance:
            for number, batch in enumerate(batches):

                def note(done: int, before: int = number * frames, batch: int = batch) -> None:
                    advance(before + done, frames * len(batches), f"batch {batch}")

                calls = [
                    _call(bundle, runner, batch)
                    for bundle, runner in zip(opened, runners, strict=True)
                ]
                times = take_turns(calls, frames, time.perf_counter, note)
                rows += [
                    _row(bundle, times[:, i], times[:, 0], batch) | _attention(runner)
                    for i, (bundle, runner) in enumerate(zip(opened, runners, strict=True))
                ]
    for row in rows:
        row.update(resident_memory(Path(row["bundle"]), threads, row["batch"]))
    result = {
        "frames": frames,
        "threads": threads,
        "batch": batches[0],  # as it was when there was but one
        "batches": batches,
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "bundles": rows,
    }
    if as_json:
        print_json(result)
    else:
        say_result(_table(rows, result))


def _call(bundle: Bundle, runner: Runner, batch: int) -> Callable[[], object]:
    """Runs a fixed batch of noise; tries it once, since a graph may have a batch of its own."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, *runner.input_shape), dtype=np.uint8)
    try:
        runner.run(images)
    except UnavailableError as error:
        raise SettingsError(
            f"{bundle.path} does not run {batch} images at once ({error})",
            "leave that --batch out, or build the bundle with a dynamic batch",
        ) from error
    return lambda: runner.run(images)


def resident_memory(bundle: Path, threads: int, batch: int) -> dict[str, float]:
    """Memory of a process of its own that has loaded one bundle and run it; see `resident`.

    Raises:
        UnavailableError: that process failed.
    """
    words = [sys.executable, "-m", "metal_edge.cli.resident", str(bundle), str(threads), str(batch)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=CHILD_LIMIT_S)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnavailableError(f"the memory of {bundle} cannot be measured ({reason})", "try again")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _row(
    bundle: Bundle, ms: NDArray[np.float64], first: NDArray[np.float64], batch: int
) -> dict[str, Any]:
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    return {
        "bundle": str(bundle.path),
        "precision": bundle.manifest.precision,
        "backend": bundle.manifest.backend,
        "batch": batch,
        "model_mb": round(bundle.manifest.files["model.onnx"].size / 1e6, 2),
        "p50_ms": round(float(p50), 3),
        "p90_ms": round(float(p90), 3),
        "p99_ms": round(float(p99), 3),
        "images_per_s": round(1000 * batch / float(np.mean(ms)), 1),
        "times_faster_than_first": round(float(np.median(first / ms)), 2),
    }


def _attention(runner: Runner) -> dict[str, str]:
    """Whose attention a TensorRT plan has; `inspect` says what the others took."""
    return {"attention": runner.attention} if isinstance(runner, TensorRtRunner) else {}


def _table(rows: list[dict[str, Any]], result: dict[str, Any]) -> str:
    columns = f"{'batch':>5} {'MB':>7} {'p50 ms':>8} {'p99 ms':>8} {'img/s':>8} {'x':>6} {'MiB':>7}"
    plans = any("attention" in row for row in rows)
    attention = f"{'attention':<13}" if plans else ""
    columns += f" {'GPU MiB':>8}" if plans else ""
    lines = [f"{'bundle':<32} {'precision':<9} {'backend':<11} {attention}{columns}"]
    lines += [
        f"{row['bundle'][-32:]:<32} {row['precision']:<9} {row['backend']:<11}"
        f" {row.get('attention', '-').ljust(13) if plans else ''}{row['batch']:>5}"
        f" {row['model_mb']:>7.1f}"
        f" {row['p50_ms']:>8.2f} {row['p99_ms']:>8.2f} {row['images_per_s']:>8.1f}"
        f" {row['times_faster_than_first']:>6.2f} {row['resident_mib']:>7.0f}"
        f"{_gpu_memory(row) if plans else ''}"
        for row in rows
    ]
    lines.append(
        f"{result['frames']} calls each in turn, {result['threads']} thread(s); x = median ratio to"
        " the first bundle, pair by pair; MiB = resident memory of a process that runs only it"
        + ("; GPU MiB = what it adds there" if plans else "")
    )
    return "\n".join(lines)


def _gpu_memory(row: dict[str, Any]) -> str:
    return f" {row['gpu_mib']:>8.0f}" if "gpu_mib" in row else f" {'-':>8}"
