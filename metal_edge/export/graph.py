"""A bundle's ONNX file as plain facts: nodes, stored tensors, constants. Needs onnx, not torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import numpy_helper

from metal_edge.errors import BundleError

# Explicit per-channel Q/DQ begins with opset 13; the parser of TensorRT 10.3 ends with 20.
OPSETS = range(13, 21)
_REBUILD = "build it again with `metal-edge build-engine`"
_FOREIGN = "name a bundle that `metal-edge build-engine` wrote"
# They change how a tensor is read, not what is stored.
_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it lies in memory.

    Attributes:
        dtype: NumPy's name, such as "uint8" or "float16".
        shape: for one image; None where the graph does not tell.
        constant: a weight or another constant, the same for every image.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    constant: bool = False

    @property
    def numbers(self) -> int:
        """How many numbers it holds; 0 where the shape is unknown."""
        return 0 if self.shape is None else math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return self.numbers * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        kind: the operator's type, with its domain if it is none of ONNX's own.
        inputs, outputs: tensor names; "" is an optional input left out.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int | tuple[int, ...]]


@dataclass(frozen=True)
class Graph:
    """A graph at batch 1.

    Attributes:
        batch: "dynamic", or the number of images that every call must have.
        nodes: in topological order.
        tensors: everything that a node reads or writes, by name.
    """

    opset: int
    batch: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        producers = {name: node for node in self.nodes for name in node.outputs}
        object.__setattr__(self, "_producers", producers)

    def producer(self, name: str) -> Node | None:
        """The node that writes a tensor; None for inputs and constants."""
        found: dict[str, Node] = self._producers  # type: ignore[attr-defined]
        return found.get(name)

    def stored(self, name: str, *, casts: bool = False) -> Tensor:
        """Where the numbers of a tensor lie: back through views and DequantizeLinear.

        Args:
            casts: also through casts to a wider type, which a kernel does while it reads.
        """
        node = self.producer(name)
        while node is not None and self.is_view(node, casts=casts):
            name = node.inputs[0]
            node = self.producer(name)
        return self.tensors[name]

    def is_view(self, node: Node, *, casts: bool = False) -> bool:
        """See `stored`."""
        if node.kind in _VIEWS or node.kind == "DequantizeLinear":
            return True
        return casts and node.kind == "Cast" and self._widens(node)

    def _widens(self, cast: Node) -> bool:
        source, result = self.tensors[cast.inputs[0]], self.tensors[cast.outputs[0]]
        return np.dtype(source.dtype).itemsize < np.dtype(result.dtype).itemsize


def read_graph(path: Path) -> Graph:
    """Reads an ONNX file of ours.

    Raises:
        BundleError: unreadable, of an opset outside OPSETS, or not a model of this package.
    """
    try:
        model = onnx.load(str(path))
        sort_nodes(model.graph)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path} is not a sound ONNX file ({reason})", _REBUILD) from error
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    _check_ours(path, model.graph)
    if opset not in OPSETS:
        raise BundleError(
            f"{path} has opset {opset}, this version reads {OPSETS.start} to {OPSETS.stop - 1}",
            _REBUILD,
        )
    batch = _fix_batch(model.graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{path}: shapes contradict each other ({reason})", _REBUILD) from error
    return _graph(inferred.graph, opset, batch)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Puts nodes after what they read, as ONNX wants it; ONNX Runtime runs unsorted files too.

    Raises:
        ValueError: a node reads what nothing gives, or there is a cycle.
    """
    missing: dict[int, set[str]] = {}
    waiting: dict[str, list[int]] = {}
    given = {value.name for value in (*graph.input, *graph.initializer)}
    produced = {name for node in graph.node for name in node.output}
    for index, node in enumerate(graph.node):
        missing[index] = {name for name in node.input if name and name not in given}
        unknown = missing[index] - produced
        if unknown:
            raise ValueError(f"nothing gives {min(unknown)}")
        for name in missing[index]:
            waiting.setdefault(name, []).append(index)
    ready = [index for index, names in missing.items() if not names]
    order = []
    for index in ready:  # grows while it is read
        order.append(graph.node[index])
        for name in graph.node[index].output:
            for later in waiting.get(name, []):
                missing[later].discard(name)
                if not missing[later]:
                    ready.append(later)
    if len(order) != len(graph.node):
        raise ValueError("its nodes form a cycle")
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(copies)


def _check_ours(path: Path, graph: onnx.GraphProto) -> None:
    """The contract of `runtime`: one uint8 NHWC image in, anomaly_map and score out."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise BundleError(f"{path} has {len(inputs)} inputs, a model of ours has one", _FOREIGN)
    kind = inputs[0].type.tensor_type
    sizes = [size.dim_value for size in kind.shape.dim]
    if kind.elem_type != onnx.TensorProto.UINT8 or len(sizes) != 4 or sizes[3] != 3:
        raise BundleError(f"{path} takes no uint8 images [N, H, W, 3]", _FOREIGN)
    missing = {"anomaly_map", "score"} - {value.name for value in graph.output}
    if missing:
        raise BundleError(f"{path} has no output {min(missing)}", _FOREIGN)


def _fix_batch(graph: onnx.GraphProto) -> str:
    """Sets the batch to 1 and forgets shapes that say otherwise; gives what it was."""
    constants = {tensor.name for tensor in graph.initializer}
    image = next(value for value in graph.input if value.name not in constants)
    size = image.type.tensor_type.shape.dim[0]
    batch = str(size.dim_value) if size.dim_value else "dynamic"
    size.Clear()
    size.dim_value = 1
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return batch


def _graph(graph: onnx.GraphProto, opset: int, batch: str) -> Graph:
    tensors: dict[str, Tensor] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensors[value.name] = _tensor(value)
    for name, array in _constants(graph):
        tensors[name] = Tensor(name, array.dtype.name, tuple(array.shape), constant=True)
    nodes = tuple(_node(node, i) for i, node in enumerate(graph.node) if node.op_type != "Constant")
    for node in nodes:
        for name in filter(None, (*node.inputs, *node.outputs)):
            tensors.setdefault(name, Tensor(name, "float32", None))
    constants = {tensor.name for tensor in graph.initializer}
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    outputs = tuple(value.name for value in graph.output)
    return Graph(opset, batch, inputs, outputs, nodes, tensors)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Initializers, and Constant nodes that hold a tensor."""
    for tensor in graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant":
            value = onnx.helper.get_attribute_value(node.attribute[0])
            is_tensor = isinstance(value, onnx.TensorProto)
            yield node.output[0], numpy_helper.to_array(value) if is_tensor else np.asarray(value)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    dtype = "float32"
    if kind.elem_type != onnx.TensorProto.UNDEFINED:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim]
    known = kind.HasField("shape") and None not in sizes
    shape = tuple(int(size or 0) for size in sizes) if known else None
    return Tensor(value.name, dtype, shape)


def _node(node: onnx.NodeProto, index: int) -> Node:
    attributes: dict[str, int | tuple[int, ...]] = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.INT:
            attributes[attribute.name] = attribute.i
        elif attribute.type == onnx.AttributeProto.INTS:
            attributes[attribute.name] = tuple(attribute.ints)
    kind = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}::{node.op_type}"
    name = node.name or f"{node.op_type}_{index}"
    return Node(name, kind, tuple(node.input), tuple(node.output), attributes)
