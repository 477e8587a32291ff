"""What one frame costs on paper: multiply-accumulates, and bytes through memory.

Counting rules, the same for every precision:

* A multiply-accumulate (MAC) is counted for convolutions and matrix products only.
* A constant (weight, scale, smoothing matrix) is read once per frame, at its stored type.
* An activation is written once, and read once by every kernel that needs it, at its stored type:
  a tensor behind Q/DQ counts as 8-bit.
* A kernel is one heavy operation together with the element-wise ones that follow it and need
  nothing else; what lies inside a kernel stays in registers. Reshapes and transposes are free.

So the sum is what a back end moves that fuses element-wise work but keeps no activation in a
cache from one kernel to the next. A cache can only lower it, down to `least_bytes`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from metal_edge.export.graph import Graph, Node, Tensor

# fmt: off
_ELEMENT_WISE = frozenset((
    "Abs", "Add", "Cast", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Pow",
    "QuantizeLinear", "Reciprocal", "Relu", "Round", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
    "Where",
))
# fmt: on


@dataclass(frozen=True)
class Layer:
    """An operation that multiplies.

    Attributes:
        weights: stored type of its constant operand; None for a product of two activations.
        activations: stored types of the others.
        precision: "int8", "fp16", "fp32", or what else its operands say.
        macs: per image; 0 where the graph does not tell.
    """

    name: str
    kind: str
    weights: str | None
    activations: tuple[str, ...]
    precision: str
    weight_bytes: int
    macs: int


@dataclass(frozen=True)
class Traffic:
    """Bytes per frame by stored type, and MACs by precision.

    Attributes:
        least_bytes: constants, image and results only: every activation stays in a cache.
        unknown: tensors whose shape the graph does not tell; they count as nothing.
    """

    weights: Mapping[str, int]
    read: Mapping[str, int]
    written: Mapping[str, int]
    macs: Mapping[str, int]
    least_bytes: int
    unknown: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Weights and activations, read and written."""
        return sum(sum(part.values()) for part in (self.weights, self.read, self.written))


def layers(graph: Graph) -> list[Layer]:
    """Every convolution, matrix product and operator of another domain, in graph order."""
    return [_layer(graph, node) for node in graph.nodes if node.kind in _MACS or "::" in node.kind]


def traffic(graph: Graph) -> Traffic:
    """Adds up the whole graph for one frame."""
    reads, writes, constants = _crossings(graph)
    macs: Counter[str] = Counter()
    for layer in layers(graph):
        macs[layer.precision] += layer.macs
    ends = [graph.stored(name, casts=True) for name in graph.outputs]
    outside = [graph.tensors[name] for name in graph.inputs] + ends
    weights = _by_type(constants)
    touched = [*reads, *writes, *constants]
    return Traffic(
        weights,
        _by_type(reads),
        _by_type(writes),
        dict(macs),
        sum(weights.values()) + sum(tensor.bytes for tensor in outside),
        tuple(sorted({tensor.name for tensor in touched if tensor.shape is None})),
    )


def _by_type(tensors: list[Tensor]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for tensor in tensors:
        total[tensor.dtype] += tensor.bytes
    return dict(sorted(total.items()))


def _crossings(graph: Graph) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Activations read and written by kernels, and constants, each as often as it is moved."""
    work = [node for node in graph.nodes if not graph.is_view(node, casts=True)]
    uses = {i: _operands(graph, node) for i, node in enumerate(work)}
    readers = Counter(tensor.name for found in uses.values() for tensor in found)
    results = {graph.stored(name, casts=True).name for name in graph.outputs}
    kernel: dict[int, int] = {}
    made_in: dict[str, int] = {}
    for index, node in enumerate(work):
        kernel[index] = index
        if node.kind in _ELEMENT_WISE:
            size = graph.tensors[node.outputs[0]].numbers
            for tensor in uses[index]:
                private = readers[tensor.name] == 1 and tensor.name not in results
                if private and tensor.name in made_in and tensor.numbers == size:
                    kernel[index] = made_in[tensor.name]
                    break
        made_in.update(dict.fromkeys(node.outputs, kernel[index]))
    read = {
        (kernel[index], tensor.name): tensor
        for index, found in uses.items()
        for tensor in found
        if not tensor.constant and made_in.get(tensor.name) != kernel[index]
    }
    moved = {name for _, name in read} | results
    written = [graph.tensors[name] for name in made_in if name in moved]
    constants = {t.name: t for node in graph.nodes for t in _constants(graph, node)}
    return list(read.values()), written, list(constants.values())


def _operands(graph: Graph, node: Node) -> list[Tensor]:
    """What a node reads, each stored tensor once."""
    found = [graph.stored(name, casts=True) for name in node.inputs if name]
    return list({tensor.name: tensor for tensor in found}.values())


def _constants(graph: Graph, node: Node) -> list[Tensor]:
    """Constants that a node names itself: scales and zero points of Q/DQ count too.

    The shape that a Reshape wants, or the axes of a reduction, are settled before the first frame.
    """
    found = [graph.tensors[name] for name in node.inputs if name]
    return [tensor for tensor in found if tensor.constant and tensor.dtype != "int64"]


def _layer(graph: Graph, node: Node) -> Layer:
    operands = [graph.stored(name) for name in node.inputs[:2] if name]
    weights = [tensor for tensor in operands if tensor.constant]
    others = tuple(tensor.dtype for tensor in operands if not tensor.constant)
    count = _MACS.get(node.kind)
    return Layer(
        node.name,
        node.kind,
        weights[0].dtype if weights else None,
        others,
        _precision({tensor.dtype for tensor in operands}, graph, node),
        sum(tensor.bytes for tensor in weights),
        0 if count is None else count(graph, node),
    )


def _precision(stored: set[str], graph: Graph, node: Node) -> str:
    if stored <= {"int8", "uint8"}:
        return "int8"
    computed = graph.tensors[node.outputs[0]].dtype
    name = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(computed, computed)
    return f"{name} on int8 weights" if stored & {"int8", "uint8"} else name


def _of_convolution(graph: Graph, node: Node) -> int:
    kernel = graph.tensors[node.inputs[1]].shape  # [out, in / group, ...]
    return graph.tensors[node.outputs[0]].numbers * math.prod((kernel or (0, 0))[1:])


def _of_transposed_convolution(graph: Graph, node: Node) -> int:
    kernel = graph.tensors[node.inputs[1]].shape  # [in, out / group, ...]
    return graph.tensors[node.inputs[0]].numbers * math.prod((kernel or (0, 0))[1:])


def _of_product(graph: Graph, node: Node) -> int:
    left = graph.tensors[node.inputs[0]].shape
    return graph.tensors[node.outputs[0]].numbers * (left[-1] if left else 0)


def _of_gemm(graph: Graph, node: Node) -> int:
    left = graph.tensors[node.inputs[0]].shape or (0, 0)
    inner = left[0] if node.attributes.get("transA", 0) else left[1]
    return graph.tensors[node.outputs[0]].numbers * inner


_MACS: dict[str, Callable[[Graph, Node], int]] = {
    "Conv": _of_convolution,
    "ConvTranspose": _of_transposed_convolution,
    "Gemm": _of_gemm,
    "MatMul": _of_product,
}
