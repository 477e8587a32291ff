"""Which nodes of an FP32 graph can be quantised, and the blocks of the network that they form."""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx

# A block of a transformer or a stage's block of a convolutional backbone, and failing that the
# first numbered module: `backbone.stages.1.0`, `context.blocks.0`, `students.2`.
_BLOCK = re.compile(r"^.*(?:blocks|stages)(?:\.\d+)+")
_NUMBERED = re.compile(r"^.*?(?:\.\d+)+")
_OF_LAYERS = frozenset({"weight", "bias"})  # other tensors belong to a block itself
PRODUCTS = frozenset({"Gemm", "MatMul"})
# Between a product and the place of its largest value. MatMul: scores of few places, enlarged.
_SEARCHING = frozenset(
    {"Add", "GatherElements", "MatMul", "ReduceMax", "Reshape", "Squeeze", "Unsqueeze"}
)
# The backbone's stem and first block (convolution, clip, depthwise, clip, projection) stay FP32:
# quantised too, they cost the anomaly map most of what INT8 costs it (correlation with FP32 .927
# against .985 on the demo's parts) and bring no speed.
FP32_HEAD = 5


def quantisable(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that INT8 may cover, in topological order.

    Linear layers, and convolutions with their activations and residual sums, but for the first
    FP32_HEAD convolutional nodes and whatever follows the reconstruction error. Of that, only
    products that choose.
    """
    convolutional = convolution_nodes(model)[FP32_HEAD:]
    wanted = {*convolutional, *linear_layers(model), *choosing_products(model)}
    return [node.name for node in model.graph.node if node.name in wanted]


def convolution_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of convolutions, their activations, and sums of two convolutional maps."""
    maps: set[str] = set()
    names = []
    for node in model.graph.node:  # in topological order
        from_maps = [name in maps for name in node.input]
        joins = (node.op_type == "Clip" and from_maps[0]) or (
            node.op_type == "Add" and all(from_maps)
        )
        if node.op_type == "Conv" or joins:
            maps.update(node.output)
            names.append(node.name)
    return names


def linear_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the MatMul and Gemm nodes whose second operand is a constant weight of a layer.

    Smoothing matrices are constants too; they multiply from the left or belong to the score's
    postprocessing, which stays FP32: it is told apart by what follows the reconstruction.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    first_after = nodes_after_reconstruction(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in PRODUCTS and node.input[1] in weights and node.name not in first_after
    ]


def choosing_products(model: onnx.ModelProto) -> list[str]:
    """Names of the products with a constant of which only the place of the maximum is used.

    They find a remembered token; the error is then computed from that token, in FP32. Rounding
    can make them choose another one, and cannot touch the error otherwise.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    outputs = {value.name for value in model.graph.output}

    def only_chooses(name: str) -> bool:
        found = readers.get(name, [])
        return (
            bool(found)
            and name not in outputs
            and all(
                node.op_type == "ArgMax"
                or (node.op_type in _SEARCHING and all(only_chooses(out) for out in node.output))
                for node in found
            )
        )

    return [
        node.name
        for node in model.graph.node
        if node.op_type in PRODUCTS and node.input[1] in weights and only_chooses(node.output[0])
    ]


def nodes_after_reconstruction(model: onnx.ModelProto) -> set[str]:
    """Nodes downstream of the subtraction that forms the reconstruction error."""
    reached = {out for node in model.graph.node if node.op_type == "Sub" for out in node.output}
    names = set()
    for node in model.graph.node:  # ONNX nodes are in topological order
        if reached & set(node.input):
            reached |= set(node.output)
            names.add(node.name)
    return names


def group_by_block(model: onnx.ModelProto, layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Block name -> names of its nodes among `layers`, both in topological order.

    A node's block follows from the parameters' names that PyTorch gave them. Where the exporter
    has renamed a weight, its bias says it, or else the nodes before.
    """
    wanted = set(layers)
    parameters = {tensor.name for tensor in model.graph.initializer if "." in tensor.name}
    bias_after = _bias_after(model, parameters)
    groups: dict[str, list[str]] = {}
    current = "input"
    for node in model.graph.node:
        named = [name for name in node.input if name in parameters]
        named += [bias_after[out] for out in node.output if out in bias_after]
        if named:
            current = block_of(named[0])
        if node.name in wanted:
            groups.setdefault(current, []).append(node.name)
    return {block: tuple(names) for block, names in groups.items()}


def block_of(parameter: str) -> str:
    """The block that a parameter belongs to: `model.students.0.2.bias` -> `students.0`."""
    path = parameter.removeprefix("model.")
    block = _BLOCK.match(path)
    if block:
        return block.group()
    module, _, leaf = path.rpartition(".")
    parent = (module.rpartition(".")[0] or module) if leaf in _OF_LAYERS else module
    numbered = _NUMBERED.match(parent)
    return numbered.group() if numbered else parent


def _bias_after(model: onnx.ModelProto, parameters: set[str]) -> dict[str, str]:
    """Tensor -> the parameter that an Add adds to it."""
    return {
        this: other
        for node in model.graph.node
        if node.op_type == "Add" and len(node.input) == 2
        for this, other in (tuple(node.input), tuple(reversed(node.input)))
        if other in parameters and this not in parameters
    }
