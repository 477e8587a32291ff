"""A product of an enlarged map comes before it is enlarged: the same numbers, less work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from metal_edge.export.enlarge_last import enlarge_last

CHANNELS, OTHERS, SMALL, SIZE, OUTPUTS = 11, 3, (2, 3), (4, 9), 7
TOKENS = SIZE[0] * SIZE[1]
random = np.random.default_rng(0)


def numbers(*shape: int) -> NDArray[np.float32]:
    return random.standard_normal(shape).astype(np.float32)


def graph(
    channels: int = CHANNELS,
    offset: int = OTHERS,
    resize: dict[str, Any] | None = None,
    product: dict[str, Any] | None = None,
    joined: tuple[str, str] = ("other", "large"),
) -> ModelProto:
    """A small map enlarged, joined with another one, scaled per channel, sliced and multiplied.

    Args:
        channels, offset: which of the joined channels the product reads.
    """
    constants = {
        "sizes": np.array(SIZE),
        "shape": np.array([0, OTHERS + CHANNELS, TOKENS]),
        "scale": numbers(OTHERS + CHANNELS),
        "shift": numbers(OTHERS + CHANNELS),
        "start": np.array([offset]),
        "end": np.array([offset + channels]),
        "axis": np.array([2]),
        "centre": numbers(channels),
        "flat": np.array([-1, channels]),
        "weight": numbers(OUTPUTS, channels),
        "bias": numbers(OUTPUTS),
    }
    node = helper.make_node
    as_exported = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    nodes = [
        node("Shape", ["small"], ["first"], start=0, end=2),
        node("Concat", ["first", "sizes"], ["wanted"], axis=0),
        node("Resize", ["small", "", "", "wanted"], ["large"], **(resize or as_exported)),
        node("Concat", joined, ["joined"], axis=1),
        node("Reshape", ["joined", "shape"], ["row"]),
        node("Transpose", ["row"], ["tokens"], perm=[0, 2, 1]),
        node("Mul", ["tokens", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["shifted"]),
        node("Slice", ["shifted", "start", "end", "axis"], ["depth"]),
        node("Sub", ["depth", "centre"], ["centred"]),
        node("Reshape", ["centred", "flat"], ["matrix"]),
        node("Gemm", ["matrix", "weight", "bias"], ["y"], "product", **(product or {"transB": 1})),
    ]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "g",
        [
            value("small", TensorProto.FLOAT, ["batch", CHANNELS, *SMALL]),
            value("other", TensorProto.FLOAT, ["batch", OTHERS, *SIZE]),
        ],
        [value("y", TensorProto.FLOAT, ["rows", OUTPUTS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: ModelProto, batch: int) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    small = rng.standard_normal((batch, CHANNELS, *SMALL)).astype(np.float32)
    other = rng.standard_normal((batch, OTHERS, *SIZE)).astype(np.float32)
    return session.run(["y"], {"small": small, "other": other})[0]


def copied(model: ModelProto) -> ModelProto:
    return ModelProto.FromString(model.SerializeToString())


def rows_of(model: ModelProto) -> int:
    """Rows that the product has for one image."""
    seen = copied(model)
    (name,) = (n.input[0] for n in seen.graph.node if n.name == "product")
    seen.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    small = np.zeros((1, CHANNELS, *SMALL), np.float32)
    other = np.zeros((1, OTHERS, *SIZE), np.float32)
    return len(session.run([name], {"small": small, "other": other})[0])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_product_has_a_row_for_each_small_place_and_gives_the_same(batch: int) -> None:
    before = graph()
    after = copied(before)
    assert enlarge_last(after) == 1
    onnx.checker.check_model(after, full_check=True)
    assert (rows_of(before), rows_of(after)) == (TOKENS, SMALL[0] * SMALL[1])
    np.testing.assert_allclose(run(after, batch), run(before, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: graph(channels=CHANNELS - 1), id="not all channels of the map"),
        pytest.param(lambda: graph(channels=CHANNELS + 1, offset=OTHERS - 1), id="also another's"),
        pytest.param(lambda: graph(offset=1, joined=("large", "other")), id="as many, but others"),
        pytest.param(lambda: graph(channels=OTHERS, offset=0), id="of a map that is not enlarged"),
        pytest.param(
            lambda: graph(
                resize={"mode": "linear", "coordinate_transformation_mode": "align_corners"}
            ),
            id="other cell centres",
        ),
        pytest.param(lambda: graph(resize={"mode": "cubic"}), id="not linear"),
        pytest.param(lambda: graph(product={"transB": 1, "alpha": 2.0}), id="a factor"),
    ],
)
def test_what_is_not_alike_stays_as_it_is(other: Callable[[], ModelProto]) -> None:
    before = other()
    after = copied(before)
    assert enlarge_last(after) == 0
    assert after == before
