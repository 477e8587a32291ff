"""OpenVINO on the CPU, for rivals only: the product's back ends are ONNX Runtime and TensorRT."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metal_edge.domain import Inspection
from metal_edge.runtime.base import check_images


def openvino_version() -> str | None:
    """Of the installed package; None where there is none."""
    if importlib.util.find_spec("openvino") is None:
        return None
    import openvino  # noqa: PLC0415  # an option

    return str(openvino.__version__).partition("-")[0]


class OpenVinoRunner:
    """Runs an ONNX file with our interface: FP32, one thread, one frame a call."""

    def __init__(self, path: Path) -> None:
        import openvino  # noqa: PLC0415

        core: Any = openvino.Core()
        model = core.read_model(path)
        shape = model.inputs[0].partial_shape
        self._shape = (shape[1].get_length(), shape[2].get_length(), 3)
        model.reshape({0: [1, *self._shape]})
        options = {
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # else BF16 wherever the CPU has it
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the bench has pinned its thread already
        }
        self._request: Any = core.compile_model(model, "CPU", options).create_infer_request()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, 3."""
        return self._shape

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        """See `Runner.run`."""
        check_images(images, self._shape)
        found = []
        for image in images:
            self._request.infer({"image": image[None]})
            anomaly_map = np.array(self._request.get_tensor("anomaly_map").data[0])
            found.append(Inspection(anomaly_map, float(self._request.get_tensor("score").data[0])))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._request
