"""Whole networks whose attention the kernels compute, in emulation: the deployed graph, rehearsed.

The graph is exported, brought to its precision and operated on as for a device. What the kernels
make of it may be at most twice as far from FP32 as the graph with native attention is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from metal_edge.export.attention_surgery import replace_attention
from metal_edge.export.masked_attention import MaskedAttentionSpec
from metal_edge.export.onnx_model import onnx_from_model
from metal_edge.export.operator_node import DOMAIN
from metal_edge.models.attention import MaskRule
from metal_edge.models.metal import Metal, MetalConfig
from metal_edge.quantize.calibration import CalibrationMethod
from metal_edge.quantize.fp16 import convert_fp16
from metal_edge.quantize.int8 import calibrate
from metal_edge.quantize.tensorrt_qdq import write_tensorrt_int8
from tools.kernels.attention import HostLibrary, run_host

SIZE = 32


class Rehearsal:
    """A network's graphs at each precision, and pictures."""

    def __init__(self, folder: Path, mask: MaskRule) -> None:
        hidden = {"square_hidden": 16, "stripe_hidden": 16, "decoder_hidden": (16,)}
        # Heads of 32 and 128, as the test library has them: its quarter of the kernels is quick.
        heads = 4 if mask is MaskRule.ZEROLEAK else 2
        sizes = {"image_size": SIZE, "patch_size": 8, "embedding": 64, "heads": heads}
        torch.manual_seed(0)
        model = Metal(MetalConfig.model_validate({**sizes, **hidden, "mask": mask})).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "query" in name or "key_value" in name:  # sharp attention
                    weight.copy_(2 * torch.randn_like(weight) / weight.shape[-1] ** 0.5)
        coarse = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
        self.images = np.stack(
            [cv2.resize(c, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for c in coarse]
        )
        fp32, fp16, ort8, int8 = (folder / f"{i}.onnx" for i in range(4))
        onnx.save(onnx_from_model(model), fp32)
        convert_fp16(fp32, fp16)
        calibrated = calibrate(fp32, self.images, CalibrationMethod.MINMAX)
        calibrated.write(ort8, calibrated.groups)
        write_tensorrt_int8(fp16, ort8, int8)
        self.files = {"float32": fp32, "float16": fp16, "int8": int8}
        session = ort.InferenceSession(fp32, providers=["CPUExecutionProvider"])
        self.exact = session.run(["anomaly_map"], {"image": self.images[:2]})[0]

    def off(self, model: onnx.ModelProto, *ops: type[OpRun]) -> float:
        """RMS distance of its maps from FP32's."""
        evaluator = ReferenceEvaluator(model, new_ops=list(ops))
        maps = evaluator.run(["anomaly_map"], {"image": self.images[:2]})[0]
        return float(np.sqrt(np.mean((np.asarray(maps, np.float64) - self.exact) ** 2)))


@pytest.fixture(scope="module", params=[MaskRule.ZERO, MaskRule.ZEROLEAK])
def rehearsal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Rehearsal:
    return Rehearsal(tmp_path_factory.mktemp("graphs"), request.param)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_the_kernels_in_the_place_of_native_attention(
    library: HostLibrary, rehearsal: Rehearsal, precision: str
) -> None:
    seen: list[str] = []

    class MaskedAttention(OpRun):
        op_domain = DOMAIN

        def _run(self, *tensors: NDArray[Any], **_attributes: Any) -> tuple[NDArray[Any]]:
            spec = MaskedAttentionSpec.from_node(self.onnx_node)
            seen.append(tensors[0].dtype.name)
            return (run_host(library, [np.ascontiguousarray(t) for t in tensors], spec),)

    native = onnx.load(rehearsal.files[precision])
    done = replace_attention(native)
    assert not done.refused
    got = rehearsal.off(done.model, MaskedAttention)
    assert seen == [one.dtype for one in done.replaced]
    assert set(seen) == {precision}
    assert 0 < got <= 2 * rehearsal.off(native)
