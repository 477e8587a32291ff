"""Networks exported in every precision, TensorRT's INT8 included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from metal_edge.export.onnx_model import onnx_from_model, save_model
from metal_edge.export.precision import EnginePrecision, write_precision
from metal_edge.models.registry import build_model, network_config
from metal_edge.models.tokens import TokenModel
from metal_edge.quantize.tensorrt_qdq import write_tensorrt_int8


def pictures(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Smooth colourful noise, uint8 [count, size, size, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(c, (size, size), interpolation=cv2.INTER_CUBIC) for c in coarse])


class Graphs:
    """A network with random weights, in every precision.

    Structure is what these tests are about. A backbone has its ImageNet weights, and what is
    fitted after training is fitted, or the maps would say nothing.
    """

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        torch.manual_seed(0)
        model = build_model(network_config.validate_python(config))
        model.load_pretrained()
        self.kind, self.size = str(config["kind"]), model.config.image_size
        seen = pictures(8, self.size, seed=0)
        if isinstance(model, TokenModel):
            with torch.inference_mode():
                stored = torch.cat([model.precompute(torch.from_numpy(x[None])) for x in seen])
                model.fit_inputs(stored)
                model.fit_errors(stored)
        self.fp32, self.fp16, self.onnxruntime, self.int8, self.int8_in_fp32 = (
            folder / f"{name}.onnx" for name in ("fp32", "fp16", "ort", "int8", "int8in32")
        )
        save_model(onnx_from_model(model.eval()), self.fp32)
        write_precision(self.fp32, self.fp16, EnginePrecision.FP16, seen)
        write_precision(self.fp32, self.onnxruntime, EnginePrecision.INT8, seen)
        write_tensorrt_int8(self.fp16, self.onnxruntime, self.int8)
        write_tensorrt_int8(self.fp32, self.onnxruntime, self.int8_in_fp32)
