"""`make device-check`: engines built, compared and timed on the NVIDIA machine that it runs on.

With --kernels-only it does without TensorRT. docs/kernels.md and docs/tensorrt.md say on which
machines which part was run.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from metal_edge import __version__
from metal_edge.bundle import Bundle
from metal_edge.cli.console import progress, say, say_result
from metal_edge.data import load_images
from metal_edge.errors import ExitCode, MetalEdgeError, UnavailableError
from metal_edge.export.onnx_model import probe_images
from metal_edge.export.tensorrt_inspect import layers_of
from metal_edge.files import write_text
from metal_edge.runtime.base import Runner
from metal_edge.runtime.load import load_runner
from metal_edge.runtime.tensorrt_load import missing_for_tensorrt, missing_gpu
from metal_edge.runtime.timing import take_turns
from tools.bench.case import Case, prepare
from tools.device.agreement import compare
from tools.device.kernels import check_kernels
from tools.device.proof import prove
from tools.device.report import Engine, Latency, Report, render
from tools.kernels import build, gpu
from tools.kernels.attention import LaunchError
from tools.results.command import run_command

HELP = """Build, compare and time the TensorRT engines of one model on this machine; write a report.

With cmake and nvcc the attention kernels are checked and timed by themselves, and the plugin that
`build-engine --attention auto` compares with TensorRT's own attention is built if none is there.
With --kernels-only that is all, and no TensorRT is needed: then the kernels' own tests run on the
GPU too, under compute-sanitizer as well, with Nsight Compute's counters, and beside PyTorch's
attention, as far as those tools are installed.

Example: python -m tools.device --run runs/bottle --out build/device
"""

PRECISIONS = ("fp32", "fp16", "int8")
_TURNS = 300
_TEST_IMAGES = 40


def check(
    run: Annotated[
        Path | None, typer.Option(help="A trained run; default: trains on the simulated line.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Report, bundles, layers.")] = Path("build/device"),
    minutes: Annotated[float, typer.Option(min=0.05, help="Training, without --run.")] = 2.0,
    kernels_only: Annotated[
        bool, typer.Option("--kernels-only", help="No TensorRT: kernels, tests, counters.")
    ] = False,
) -> None:
    """See HELP."""
    if kernels_only:
        _finish(_kernels_alone(out), out)
        return
    missing = missing_for_tensorrt()
    if missing is not None:
        raise UnavailableError(
            f"the device check needs TensorRT on an NVIDIA GPU: {missing}",
            "run it on the Jetson, or on any machine with a GPU; --kernels-only does without"
            " TensorRT; `make test-tensorrt` shows what can be shown without a GPU",
        )
    out.mkdir(parents=True, exist_ok=True)
    case = prepare(out / "case", run, minutes)
    frames = _frames(case)
    with load_runner(case.bundles["fp32"]) as runner:
        expected = [runner.run(frame[None])[0] for frame in frames]
        reference = _latency(runner, frames[0], "ONNX Runtime FP32")
    with progress("building and timing the kernels") as advance:
        name, capability = _gpu()
        kernels = check_kernels(out / "kernels", capability)
        advance(1, 1, "")
    engines = []
    for precision in PRECISIONS:
        try:
            engines.append(_engine(case, precision, out, frames, expected))
        except MetalEdgeError as error:
            say(f"{precision}: {error}")
            engines.append(Engine(precision, failure=str(error)))
    model = str(case.bundles["fp32"].manifest.model.get("kind", "unknown"))
    machine = _machine(f"{name}, compute capability {capability}")
    _finish(Report(machine, model, reference, engines, _command(), _now(), kernels), out)


def _kernels_alone(out: Path) -> Report:
    try:
        missing = missing_gpu()
        found = gpu.describe() if missing is None else None
    except (build.MissingToolError, build.BuildError, LaunchError) as error:
        missing, found = str(error), None
    if found is None:
        raise UnavailableError(
            f"the kernels need an NVIDIA GPU and nvcc: {missing}",
            "`make test-kernels` shows what can be shown without",
        )
    out.mkdir(parents=True, exist_ok=True)
    kernels = check_kernels(out / "kernels", found.rpartition(" ")[2])
    say("the kernels' tests, NVIDIA's checkers and counters, PyTorch's kernels: some minutes")
    kernels = prove(kernels, out / "kernels")
    return Report(_machine(found), None, None, [], _command(), _now(), kernels)


def _command() -> str:
    return "python -m tools.device " + shlex.join(sys.argv[1:])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _finish(report: Report, out: Path) -> None:
    text = render(report)
    write_text(out / "report.md", text)
    say_result(text)
    say(f"{out / 'report.md'}")
    if not report.passed:
        raise typer.Exit(ExitCode.FAILURE)


def _engine(
    case: Case,
    precision: str,
    out: Path,
    frames: NDArray[np.uint8],
    expected: Sequence[Any],
) -> Engine:
    """One precision: plan, layers, agreement with FP32 on ONNX Runtime, latency."""
    folder = out / f"{precision}.bundle"
    built = _build(case, precision, folder)
    bundle = Bundle.open(folder)
    write_text(out / f"layers-{precision}.json", layers_of(bundle) + "\n")
    with load_runner(bundle) as runner:
        got = [runner.run(frame[None])[0] for frame in frames]
        latency = _latency(runner, frames[0], f"TensorRT {precision}")
    return Engine(
        precision,
        plan=built.get("plan") or {},
        agreement=compare(expected, got, case.bundles["fp32"].thresholds.score),
        latency=latency,
    )


def _build(case: Case, precision: str, folder: Path) -> dict[str, Any]:
    words = ["build-engine", str(case.run.path), "--backend", "tensorrt"]
    words += ["--precision", precision, "-o", str(folder), "--json"]
    say("$ metal-edge " + " ".join(words))
    done = subprocess.run(
        [sys.executable, "-m", "metal_edge", *words], stdout=subprocess.PIPE, check=False
    )
    if done.returncode == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        raise MetalEdgeError(
            f"build-engine ended with exit code {done.returncode}", "see its message above"
        )
    built: dict[str, Any] = json.loads(done.stdout)
    return built


def _frames(case: Case) -> NDArray[np.uint8]:
    """Test pictures, good and bad, and adversarial ones; uint8 [N, S, S, 3]."""
    size = case.run.preprocess
    step = max(1, len(case.dataset.test) // _TEST_IMAGES)
    images = load_images(case.dataset.test[::step], size.width, size.height, size.crop)
    return np.concatenate([images, probe_images(size.width)])


def _latency(runner: Runner, frame: NDArray[np.uint8], what: str) -> Latency:
    with progress(f"timing {what}") as advance:
        times = take_turns(
            [lambda: runner.run(frame[None])],
            _TURNS,
            time.perf_counter,
            lambda done: advance(done, _TURNS, ""),
        )[:, 0]
    return Latency(float(np.median(times)), float(np.percentile(times, 99)), len(times))


def _machine(gpu_words: str) -> dict[str, str]:
    """What a reader must know to compare: GPU, versions, power mode."""
    from metal_edge.runtime.tensorrt_engine import import_tensorrt  # noqa: PLC0415

    facts = {"GPU": gpu_words}
    missing = missing_for_tensorrt()
    facts["TensorRT"] = missing or str(import_tensorrt().__version__)
    facts["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    facts["metal_edge"] = __version__
    facts["Python"] = platform.python_version()
    facts["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}"
    facts["power mode"] = _said("nvpmodel", "-q") or "not a Jetson"
    facts["clocks"] = _said(
        "nvidia-smi", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"
    )
    return facts


def _gpu() -> tuple[str, str]:
    """Name and compute capability of the GPU that the runtime opens."""
    from metal_edge.runtime.cuda_memory import open_cuda  # noqa: PLC0415

    cuda = open_cuda()
    try:
        return cuda.gpu, cuda.compute_capability
    finally:
        cuda.close()


def _said(*words: str) -> str:
    """A command's output in one line; empty where there is no such command or it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " ".join(done.stdout.split()) if done.returncode == 0 else ""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(check, "python -m tools.device", HELP, arguments)


if __name__ == "__main__":
    sys.exit(main())
