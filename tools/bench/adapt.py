"""Contenders from other houses and of other sizes, brought to one interface."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from metal_edge.domain import Inspection
from metal_edge.imaging import prepare
from metal_edge.runtime.base import Runner, check_images


class Resized:
    """A runner that takes frames of another size: it resizes first, as the daemon does.

    Args:
        inner: whose it is to close.
        side: of the square frames that come.
    """

    def __init__(self, inner: Runner, side: int) -> None:
        self._inner, self._shape = inner, (side, side, 3)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width, 3 of what comes."""
        return self._shape

    def run(self, images: NDArray[np.uint8]) -> list[Inspection]:
        """See `Runner.run`; the map has the inner runner's size."""
        check_images(images, self._shape)
        height, width, _ = self._inner.input_shape
        if (height, width) != self._shape[:2]:
            images = np.stack([prepare(image, width, height) for image in images])
        return self._inner.run(images)

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inner.__exit__(kind, error, trace)


def from_anomalib(theirs: onnx.ModelProto) -> onnx.ModelProto:
    """anomalib's export behind our interface, nothing else of it changed.

    Theirs takes float32 [1, 3, S, S] in 0..1 and gives `pred_score` [1] and `anomaly_map`
    [1, 1, S, S]; the result takes uint8 `image` [1, S, S, 3] and gives `anomaly_map` [1, S, S] and
    `score` [1].

    Raises:
        ValueError: it has another interface.
    """
    graph = theirs.graph
    if len(graph.input) != 1 or {o.name for o in graph.output} != {"pred_score", "anomaly_map"}:
        raise ValueError("not an export of anomalib 2.7: input and outputs differ")
    taken = graph.input[0].name
    _, _, side, _ = (d.dim_value for d in graph.input[0].type.tensor_type.shape.dim)
    their_map = "anomaly_map_of_anomalib"
    nodes = [
        helper.make_node("Transpose", ["image"], ["image_chw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["image_chw"], ["image_float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["image_float", "white"], [taken]),
    ]
    for node in graph.node:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        for names in (kept.input, kept.output):
            names[:] = [their_map if name == "anomaly_map" else name for name in names]
        nodes.append(kept)
    nodes += [
        helper.make_node("Reshape", [their_map, "map_shape"], ["anomaly_map"]),
        helper.make_node("Reshape", ["pred_score", "score_shape"], ["score"]),
    ]
    constants = [
        helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("map_shape", TensorProto.INT64, [3], [1, side, side]),
        helper.make_tensor("score_shape", TensorProto.INT64, [1], [1]),
    ]
    ours = helper.make_graph(
        nodes,
        "patchcore",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, side, side, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [1, side, side]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]),
        ],
        [*graph.initializer, *constants],
    )
    model = helper.make_model(ours, opset_imports=theirs.opset_import, functions=theirs.functions)
    model.ir_version = theirs.ir_version
    return model
