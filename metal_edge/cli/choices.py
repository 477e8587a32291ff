"""What the commands' options can be, and the options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class PrecisionName(StrEnum):
    """Choices of --precision."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class CalibrationName(StrEnum):
    """Choices of --calibration."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


class BackendName(StrEnum):
    """Choices of --backend."""

    AUTO = "auto"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class AttentionName(StrEnum):
    """Choices of --attention."""

    AUTO = "auto"
    PLUGIN = "plugin"
    NATIVE = "native"


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
    FINE = "fine"
    FAST = "fast"


class MaskName(StrEnum):
    """Choices of --mask."""

    OFF = "off"
    ZERO = "zero"
    NEG_INF = "neg_inf"
    ZEROLEAK = "zeroleak"


class ErrorName(StrEnum):
    """Choices of --error."""

    SQUARED = "squared"
    ABSOLUTE = "absolute"
    GRADIENTS = "gradients"


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
CalibrationOption = Annotated[
    CalibrationName,
    typer.Option(
        "--calibration",
        help="INT8: how much of the values seen a scale covers; all of them, all but 0.01 %, or"
        " what keeps most of their distribution",
    ),
]
CalibrationImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration-images",
        help="INT8: folder of good images to calibrate on; default: 64 of the training images",
    ),
]
CalibrationRecordOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration-record",
        metavar="DIR",
        help="INT8: folder, e.g. calibration/line1, for a record to review: frames by SHA-256"
        " and why, scales, sweep, accuracy; no images",
    ),
]
BudgetOption = Annotated[
    float,
    typer.Option(
        "--accuracy-budget",
        metavar="LOSS",
        help="INT8: image and pixel AUROC that may be lost where there are labels; blocks that"
        " cost more stay FP32",
    ),
]
SweepOption = Annotated[
    bool,
    typer.Option(
        "--sweep/--no-sweep",
        help="INT8: try each block alone, about a minute; without, all are INT8",
    ),
]
