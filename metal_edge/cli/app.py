"""The `metal-edge` command: options and help here, heavy imports inside each command."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from metal_edge import __version__
from metal_edge.cli.choices import (
    AttentionName,
    BackendName,
    BudgetOption,
    CalibrationImagesOption,
    CalibrationName,
    CalibrationOption,
    CalibrationRecordOption,
    DataOption,
    JsonOption,
    PrecisionName,
    RateOption,
    RunOrBundle,
    RunPath,
    SweepOption,
    ThreadsOption,
)
from metal_edge.cli.console import say
from metal_edge.cli.train_command import EXAMPLE, train
from metal_edge.errors import ExitCode, MetalEdgeError, UnavailableError

app = typer.Typer(
    name="metal-edge",
    help="Visual inspection for production lines: train on good parts, deploy, decide.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"metal-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    # A service manager's stop must clean up like Ctrl-C; the daemon has handlers of its own.
    if context.invoked_subcommand != "run":
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGTERM, _interrupt)


_interrupted_by: list[int] = []


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    """Notes the signal before raising: native code that calls back into Python (safetensors,
    ONNX Runtime) turns a KeyboardInterrupt into an error of its own, which then looks like a
    damaged file."""
    _interrupted_by.append(number)
    raise KeyboardInterrupt


app.command(epilog=EXAMPLE)(train)


@app.command(epilog="Example: metal-edge evaluate runs/bottle --json")
def evaluate(
    model: RunOrBundle,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="folder of the report")] = None,
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Measure on the test part of a data set; write report.html, report.json and gallery.png."""
    from metal_edge.cli.evaluate import run_evaluate

    run_evaluate(model, data, out, threads, as_json)


@app.command(epilog="Example: metal-edge calibrate runs/bottle --false-reject-rate 0.02")
def calibrate(
    run: RunPath,
    rate: RateOption = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="further good images, never trained on")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the threshold from held-out good parts, with a guaranteed false-reject rate."""
    from metal_edge.cli.build import run_calibrate

    run_calibrate(run, rate, images, as_json)


@app.command(epilog="Example: metal-edge export runs/bottle -o bottle.onnx")
def export(
    run: RunPath,
    out: Annotated[Path, typer.Option("-o", "--out", help="ONNX file to write")],
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="images per call, fixed in the graph; default: any"),
    ] = None,
) -> None:
    """Write the FP32 ONNX graph (pre- and postprocessing inside), compared with the checkpoint."""
    from metal_edge.cli.build import run_export

    run_export(run, out, batch)


_BUILD_EXAMPLES = """\
Example: metal-edge build-engine runs/bottle --precision int8 -o bottle.bundle

Example: metal-edge build-engine bottle.bundle --backend tensorrt --attention auto
--workspace 1024 --timing-cache orin.timing -o bottle.bundle
"""


@app.command(epilog=_BUILD_EXAMPLES)
def build_engine(
    context: typer.Context,
    source: RunOrBundle,
    out: Annotated[Path, typer.Option("-o", "--out", help="bundle folder to write")],
    precision: Annotated[
        PrecisionName, typer.Option(help="arithmetic of the network; a bundle keeps its own")
    ] = PrecisionName.FP16,
    backend: Annotated[
        BackendName, typer.Option(help="auto: TensorRT where it is present, else ONNX Runtime")
    ] = BackendName.AUTO,
    rate: RateOption = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="further good images for the threshold")
    ] = None,
    attention: Annotated[
        AttentionName,
        typer.Option(
            help="TensorRT: whose attention; auto builds both on this machine, checks both on the"
            " golden images and keeps the faster correct one"
        ),
    ] = AttentionName.AUTO,
    workspace: Annotated[
        int | None,
        typer.Option(
            "--workspace",
            min=1,
            metavar="MIB",
            help="TensorRT: scratch memory of a layer at most; default: what the GPU has",
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--timing-cache",
            metavar="FILE",
            help="TensorRT: measured kernel times, read and written; default: a file beside the"
            " plans",
        ),
    ] = None,
    calibration: CalibrationOption = CalibrationName.MINMAX,
    calibration_images: CalibrationImagesOption = None,
    calibration_record: CalibrationRecordOption = None,
    accuracy_budget: BudgetOption = 0.002,
    sweep: SweepOption = True,
    as_json: JsonOption = False,
) -> None:
    """Build the deployable bundle: precision in the graph, threshold, golden images, hashes.

    For TensorRT also the plan for this machine, from a run or from a bundle.
    """
    from metal_edge.cli.engine import PlanOptions, is_bundle, run_rebuild

    options = PlanOptions(attention.value, workspace, timing_cache)
    if is_bundle(source):
        run_rebuild(source, out, backend.value, _given(context), options, as_json)
        return
    from metal_edge.cli.build import Int8Wish, run_build_engine

    int8 = Int8Wish(
        calibration.value, calibration_images, calibration_record, accuracy_budget, sweep
    )
    run_build_engine(
        source, out, precision.value, backend.value, rate, images, options, as_json, int8
    )


def _given(context: typer.Context) -> list[str]:
    """Options that were written on the command line, in their long form."""
    spelt = {p.name: max(p.opts, key=len) for p in context.command.params if p.name}
    sources = {name: context.get_parameter_source(name) for name in spelt}
    given = [spelt[name] for name, source in sources.items() if source and source.name == _WRITTEN]
    return [option for option in given if option.startswith("--")]


@app.command(epilog="Example: metal-edge evidence /var/lib/metal-edge/press1/*/evidence --part A1")
def evidence(
    path: Annotated[Path, typer.Argument(help="folder of evidence.path")],
    part: Annotated[str | None, typer.Option("--part", help="only this part id")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="90m, 12h, 3d, or a moment in ISO 8601")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="folder to copy the pictures to")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="of the newest")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Find the pictures that the daemon kept of parts, newest first."""
    from metal_edge.cli.evidence import run_evidence

    run_evidence(path, part, since, out, as_json, limit)


@app.command(epilog="Example: metal-edge run --config /etc/metal-edge/line1.toml")
def run(
    config: Annotated[
        list[Path],
        typer.Option("-c", "--config", help="a line's settings (TOML); once per line"),
    ],
    keep_trying: Annotated[
        bool,
        typer.Option("--keep-trying", help="try a line again that cannot be armed or that fails"),
    ] = False,
) -> None:
    """Run the daemon beside the line: camera, inference, decision over MQTT."""
    from metal_edge.daemon.service import run_daemon

    raise typer.Exit(run_daemon(config, keep_trying=keep_trying))


@app.command(epilog="Example: metal-edge bench bottle.bundle bottle-fp32.bundle --frames 200")
def bench(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="compared in one run")],
    frames: Annotated[int, typer.Option(min=10, help="timed calls per bundle and batch")] = 200,
    threads: ThreadsOption = 1,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="images per call; give it several times to compare", show_default="1"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time bundles, taking turns: latency percentiles, throughput, resident memory, ratios."""
    from metal_edge.cli.bench import run_bench

    run_bench(bundles, frames, threads, batch or [1], as_json)


@app.command(epilog="Example: metal-edge inspect bottle.bundle --json")
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="folder made by `build-engine`")],
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle is: graph, precision per layer, sizes, threshold, memory traffic."""
    from metal_edge.cli.inspect import run_inspect

    run_inspect(bundle, as_json)


@app.command(epilog="Example: metal-edge doctor --config /etc/metal-edge/line1.toml")
def doctor(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", help="check this line's settings as well")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and, with --config, a line: what is wrong and what to do."""
    from metal_edge.cli.doctor import run_doctor

    run_doctor(config, as_json)


@app.command(epilog="Example: metal-edge demo --data ../shared/data/magnetic_tile")
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for everything it makes")] = Path(
        "build/demo"
    ),
    data: Annotated[
        Path | None, typer.Option("--data", help="MVTec-layout folder in place of the simulator")
    ] = None,
    parts: Annotated[int, typer.Option(min=10, help="parts on the simulated line")] = 200,
    minutes: Annotated[float, typer.Option(min=0.05, help="training time")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="of the simulated line")] = 7,
) -> None:
    """The whole path on this machine: train, build, daemon, real broker, PLC at the gate."""
    from metal_edge.cli.demo import run_demo

    raise typer.Exit(run_demo(out, data, parts, minutes, seed))


_WRITTEN = "COMMANDLINE"  # as opposed to DEFAULT
# Typer exports this class of its command-line errors, but not their base.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_TRAINING_PACKAGES = frozenset(
    {"torch", "lightning_fabric", "safetensors", "onnx", "onnxscript", "onnxsim"}
)


def main() -> None:
    """Entry point: one line per error, exit codes of sysexits(3), 130 for Ctrl-C and SIGTERM."""
    if isinstance(sys.stdout, TextIOWrapper):  # a path need not be printable in this locale
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - `_explain` raises again what it does not know
        if _interrupted_by:  # whatever native code made of it
            sys.exit(ExitCode.INTERRUPTED)
        _explain(error)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _explain(error: Exception) -> NoReturn:
    """Ends with one line for a known problem; raises `error` again if it is a bug of ours."""
    if isinstance(error, MetalEdgeError):
        _fail(str(error), error.exit_code)
    if isinstance(error, _UsageError):
        _fail(_usage_problem(error), ExitCode.USAGE)
    if isinstance(error, ModuleNotFoundError):
        _fail(str(_not_installed(error)), ExitCode.UNAVAILABLE)
    if isinstance(error, OSError):
        _fail(_system_problem(error), ExitCode.FAILURE)
    raise error


def _fail(what: str, code: ExitCode) -> NoReturn:
    say(f"metal-edge: error: {what}")
    sys.exit(code)


def _usage_problem(error: Exception) -> str:
    message: str = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "metal-edge"
    return f"{' '.join(message.split()).rstrip('.')}: see `{command} --help`"


def _not_installed(error: ModuleNotFoundError) -> UnavailableError:
    """The daemon's installation has no training packages; anything else missing is a bug."""
    name = (error.name or "").partition(".")[0]
    if name not in _TRAINING_PACKAGES:
        raise error
    return UnavailableError(
        f"this command needs the Python package {name}, which is not installed",
        "pip install 'metal-edge[train]'",
    )


def _system_problem(error: OSError) -> str:
    """Whatever no other place has put into better words: names the file."""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}: check permissions and free space there"
