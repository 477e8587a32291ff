"""The `metal-edge` command: options and help here, heavy imports inside each command."""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from metal_edge import __version__
from metal_edge.cli.console import say
from metal_edge.errors import ExitCode, MetalEdgeError, UnavailableError

app = typer.Typer(
    name="metal-edge",
    help="Visual inspection for production lines: train on good parts, deploy, decide.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class PrecisionName(StrEnum):
    """Choices of --precision."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class BackendName(StrEnum):
    """Choices of --backend."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class ModelName(StrEnum):
    """Choices of --model."""

    METAL_FEATURES = "metal-features"
    METAL = "metal"
    L2BT = "l2bt"
    ANOVIT = "anovit"


class RecipeName(StrEnum):
    """Choices of --recipe."""

    FAST = "fast"
    PAPER = "paper"


class PresetName(StrEnum):
    """Choices of --preset."""

    PRODUCTS = "products"
    TEXTURES = "textures"


class MaskName(StrEnum):
    """Choices of --mask."""

    OFF = "off"
    ZERO = "zero"
    NEG_INF = "neg_inf"
    ZEROLEAK = "zeroleak"


class TrainPrecisionName(StrEnum):
    """Choices of --train-precision."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class AcceleratorName(StrEnum):
    """Choices of --accelerator."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class MixedSizes(StrEnum):
    """Choices of --mixed-sizes."""

    REFUSE = "refuse"
    RESIZE = "resize"


RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="folder made by `train`")]
RunOrBundle = Annotated[
    Path, typer.Argument(metavar="RUN|BUNDLE", help="folder made by `train` or `build-engine`")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="data set, if not the one that was trained on")
]
RateOption = Annotated[
    float | None,
    typer.Option(
        "--false-reject-rate",
        help="share of good parts that may be rejected, e.g. 0.01; default: the tightest of"
        " 0.01, 0.02, 0.05, 0.1, 0.2 that the held-out images can guarantee",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="ONNX Runtime threads")]


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


@app.command(epilog="Example: metal-edge train ./bottle -o runs/bottle --max-minutes 5")
def train(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET", help="folder of good images, or MVTec layout (train/good, test/...)"
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the run")],
    model: Annotated[
        ModelName,
        typer.Option(
            help="metal: the paper's network on pixels; metal-features: on ImageNet features;"
            " l2bt: students between depths of a backbone; anovit: ViT encoder and decoder"
        ),
    ] = ModelName.METAL_FEATURES,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="metal-features, l2bt: efficientnet-lite0 (default) or timm:NAME, a ViT; anovit:"
            " scratch (default) or timm:NAME, e.g. timm:vit_base_patch16_384",
        ),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            "--backbone-weights",
            metavar="FILE.safetensors",
            help="timm:NAME: its weights, where the model hub cannot be reached",
        ),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="metal-features, l2bt: depths, shallow to deep: blocks of a ViT, default 7,11;"
            " or stages, default stride4+stride8,stride16-early+stride16,stride32",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=16,
            max=4096,
            help="not for metal: side of the network's input in pixels; default: the model's",
        ),
    ] = None,
    preset: Annotated[
        PresetName, typer.Option(help="metal: products 1 block, textures 2 (paper, Table 2)")
    ] = PresetName.PRODUCTS,
    mask: Annotated[
        MaskName | None,
        typer.Option(
            help="metal: what hides a patch from its own reconstruction; default zero, the paper's,"
            " which leaks; zeroleak does not"
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="metal: any of squares,rows,cols; default: squares,rows (the paper)"
        ),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(min=1, max=8, help="metal: depth; default: the preset's")
    ] = None,
    radius: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="squares or tokens around a patch that are hidden with it; metal with --mask"
            " zeroleak: default 0; metal-features: default 1",
        ),
    ] = None,
    weighting: Annotated[
        bool,
        typer.Option(
            "--weighting",
            help="divide the map by the error of good parts at each place: for parts that always"
            " lie in the same place",
        ),
    ] = False,
    held_out: Annotated[
        float, typer.Option(min=0.01, max=0.8, help="share of good images kept for the threshold")
    ] = 0.15,
    recipe: Annotated[
        RecipeName, typer.Option(help="fast: falling rate in a time budget; paper: constant rate")
    ] = RecipeName.FAST,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.05, help="training time; fast: 5 (metal-features, l2bt) or 10"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="at most so many epochs")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="images per step; default: the recipe's")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=1e-8, max=1.0, help="highest step size; default: the recipe's"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="decides split, weights and order")] = 0,
    crop: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="part of the frame to inspect, in pixels")
    ] = None,
    mixed_sizes: Annotated[
        MixedSizes, typer.Option(help="what to do with images of different sizes")
    ] = MixedSizes.REFUSE,
    train_precision: Annotated[
        TrainPrecisionName,
        typer.Option(help="arithmetic of training; auto: bf16 where native; fp16: GPU only"),
    ] = TrainPrecisionName.AUTO,
    accelerator: Annotated[
        AcceleratorName, typer.Option(help="what trains; auto: the GPU where there is one")
    ] = AcceleratorName.AUTO,
    devices: Annotated[
        int,
        typer.Option(min=1, max=64, help="GPUs, or processes on the CPU, that share each batch"),
    ] = 1,
    save_every: Annotated[
        float | None,
        typer.Option(
            "--save-every",
            min=0,
            help="seconds between saved states, default 30: what a crash costs",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="discard the run that is there, and start over")
    ] = False,
) -> None:
    """Train a model on good parts. Stopped by Ctrl-C or a crash? The same command goes on."""
    from metal_edge.cli.train import TrainOptions, run_train

    run_train(
        dataset,
        out,
        TrainOptions(
            model=model.value,
            backbone=backbone,
            backbone_weights=backbone_weights,
            levels=levels,
            image_size=image_size,
            preset=preset.value,
            mask=None if mask is None else mask.value,
            shapes=shapes,
            blocks=blocks,
            radius=radius,
            weighting=weighting,
            held_out=held_out,
            recipe=recipe.value,
            max_minutes=max_minutes,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            crop=crop,
            mixed_sizes=mixed_sizes is MixedSizes.RESIZE,
            train_precision=train_precision.value,
            accelerator=accelerator.value,
            devices=devices,
            save_every_s=save_every,
            fresh=fresh,
        ),
    )


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
) -> None:
    """Write the FP32 ONNX graph (pre- and postprocessing inside), compared with the checkpoint."""
    from metal_edge.cli.build import run_export

    run_export(run, out)


@app.command(
    epilog="Example: metal-edge build-engine runs/bottle --precision int8 -o bottle.bundle"
)
def build_engine(
    run: RunPath,
    out: Annotated[Path, typer.Option("-o", "--out", help="bundle folder to write")],
    precision: Annotated[PrecisionName, typer.Option(help="arithmetic of the network")] = (
        PrecisionName.FP16
    ),
    backend: Annotated[
        BackendName, typer.Option(help="auto: TensorRT where it is present, else ONNX Runtime")
    ] = BackendName.AUTO,
    rate: RateOption = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="further good images for the threshold")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build the deployable bundle: precision in the graph, threshold, golden images, hashes."""
    from metal_edge.cli.build import run_build_engine

    run_build_engine(run, out, precision.value, backend.value, rate, images, as_json)


@app.command(epilog="Example: metal-edge run --config /etc/metal-edge/line1.toml")
def run(
    config: Annotated[Path, typer.Option("-c", "--config", help="the line's settings (TOML)")],
) -> None:
    """Run the daemon beside the line: camera, inference, decision over MQTT."""
    from metal_edge.daemon.service import run_daemon
    from metal_edge.settings import load_settings

    raise typer.Exit(run_daemon(load_settings(config)))


@app.command(epilog="Example: metal-edge bench bottle.bundle bottle-fp32.bundle --frames 200")
def bench(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="compared in one run")],
    frames: Annotated[int, typer.Option(min=10, help="timed frames per bundle")] = 200,
    threads: ThreadsOption = 1,
    batch: Annotated[int, typer.Option(min=1, help="images per call")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Time bundles, taking turns: latency percentiles, throughput, ratios."""
    from metal_edge.cli.bench import run_bench

    run_bench(bundles, frames, threads, batch, as_json)


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
