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


class MaskName(StrEnum):
    """Choices of --mask."""

    OFF = "off"
    ZERO = "zero"
    NEG_INF = "neg_inf"
    ZEROLEAK = "zeroleak"


class ErrorName(StrEnum):
    """Choices of --error."""

    SQUARED = "squared"
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
