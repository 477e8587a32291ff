"""FP32 ONNX -> FP16 ONNX: casts in the graph, FP32 islands where FP16 would lose the signal."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from metal_edge.quantize.int8 import nodes_after_reconstruction


def convert_fp16(source: Path, destination: Path) -> list[str]:
    """Writes `source` with FP16 weights and arithmetic; returns the nodes that stay FP32."""
    model = onnx.load(source)
    islands = fp32_islands(model)
    onnx.save(
        convert_float_to_float16(model, keep_io_types=True, node_block_list=islands), destination
    )
    return islands


def fp32_islands(model: onnx.ModelProto) -> list[str]:
    """Nodes that stay FP32 in an FP16 graph, and why.

    Normalisation and softmax lose small differences or overflow in FP16; the scaling of pixels
    and the error map subtract nearly equal numbers and square what is left.
    """
    kept = {"LayerNormalization", "Softmax", "Div", "Sub", "Cast"}
    names = {node.name for node in model.graph.node if node.op_type in kept}
    return sorted(names | nodes_after_reconstruction(model))
