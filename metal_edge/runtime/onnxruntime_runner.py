"""ONNX Runtime on the CPU: the embedded default and the reference for every other back end."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from metal_edge.domain import Inspection
from metal_edge.errors import BundleError, UnavailableError
from metal_edge.runtime.base import check_images

DISABLED_OPTIMIZERS = [
    # Quantises biases that a graph leaves in floating point, with input scale x weight scale.
    # Between FP16 Q/DQ (TensorRT's INT8) that product underflows, and the maps are wrong (1.32:
    # correlation .19 with FP32, .98 without it). Where biases are int32 already it does nothing.
    "WeightBiasQuantization",
    # A sum and a layer normalisation in one kernel, which takes several times as long as both
    # alone (1.32, AVX-512, 256 tokens of 256 channels: .33 ms against .06).
    "SkipLayerNormFusion",
]


class OnnxRuntimeRunner:
    """Runs a bundle's model.onnx.

    Args:
        model: path of the ONNX file.
        threads: intra-op threads. One is the steadiest beside a camera and a broker client.
    """

    def __init__(self, model: Path, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning workers would steal the core that the camera and the broker client need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session: Any = ort.InferenceSession(
                str(model),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=DISABLED_OPTIMIZERS,
            )
        except Exception as error:
            raise BundleError(
                f"ONNX Runtime cannot load {model} ({error})", "build the bundle again"
            ) from error
        self._input = self._single_input(model)

    def _single_input(self, model: Path) -> str:
        inputs = self._session.get_inputs()
        outputs = {o.name for o in self._session.get_outputs()}
        if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4:
            raise BundleError(
                f"{model} is not a metal_edge model (needs one uint8 NHWC input)",
                "export it with `metal-edge export`",
            )
        if not {"anomaly_map", "score"} <= outputs:
            raise BundleError(
                f"{model} has no outputs anomaly_map and score",
                "export it with `metal-edge export`",
            )
        _, height, width, _ = inputs[0].shape
        self._shape = (int(height), int(width), 3)
        return str(inputs[0].name)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, 3."""
        return self._shape

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        """See `Runner.run`."""
        check_images(images, self._shape)
        try:
            maps, scores = self._session.run(["anomaly_map", "score"], {self._input: images})
        except Exception as error:
            raise UnavailableError(f"inference failed ({error})", "see the log") from error
        return [Inspection(m, float(s)) for m, s in zip(maps, scores, strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._session
