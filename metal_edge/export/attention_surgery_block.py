"""What lies around a MaskedAttention in ZeroLeak -> one MaskedAttentionBlock node, one launch.

LayerNorm of the content, projection to keys and values, attention, output projection and residual
become one node. It comes after `attention_surgery.replace_attention`, whose nodes it starts from.
What is not recognised exactly stays as it is, with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from metal_edge.export.attention_layout import Array, GraphView, RefusedError
from metal_edge.export.attention_match import FLOATS
from metal_edge.export.attention_surgery import put_nodes
from metal_edge.export.masked_attention import OP, MaskedAttentionSpec
from metal_edge.export.masked_attention_block import MaskedAttentionBlockSpec, why_not_fused
from metal_edge.export.operator_node import DOMAIN


@dataclass(frozen=True, slots=True)
class Fused:
    """One attention that is a MaskedAttentionBlock now.

    Attributes:
        node: name of the new node.
        queries, keys, width, heads: its size.
        constant_query: its query comes from no picture, and was projected by the exporter.
    """

    node: str
    queries: int
    keys: int
    width: int
    heads: int
    constant_query: bool


@dataclass(frozen=True, slots=True)
class BlockSurgery:
    """What was done.

    Attributes:
        model: the new graph; a copy of the old one where nothing was fused.
        fused: in topological order.
        refused: for each MaskedAttention that stays, its name and the reason.
    """

    model: ModelProto
    fused: tuple[Fused, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Linear:
    """x @ weight^T + bias; `source` is x, `result` the name of what comes out."""

    source: str
    weight: Array
    bias: Array
    result: str


@dataclass(frozen=True, slots=True)
class _Block:
    """Everything that the new node needs; names of tensors, and constants."""

    spec: MaskedAttentionBlockSpec
    query: str
    content: str
    residual: str
    result: str
    constants: dict[str, Array]


def fuse_blocks(model: ModelProto, *, float32: bool = False) -> BlockSurgery:
    """Fuses every MaskedAttention whose surroundings are a ZeroLeak block's.

    Args:
        model: left as it is.
        float32: also where tensors are float32. No kernel runs that: it is for comparisons.
    """
    edited = ModelProto()
    edited.CopyFrom(model)
    view = _view(edited)
    added: list[NodeProto] = []
    fused: list[Fused] = []
    refused: list[str] = []
    for node in view.nodes:
        if (node.domain, node.op_type) != (DOMAIN, OP):
            continue
        try:
            block = _read_block(view, node, float32)
        except RefusedError as reason:
            refused.append(f"{node.name}: {reason}")
            continue
        name = f"{node.name}_block"
        for part, values in block.constants.items():
            edited.graph.initializer.append(numpy_helper.from_array(values, f"{name}_{part}"))
        inputs = [block.query, block.content, block.residual]
        inputs += [f"{name}_{part}" for part in block.constants]
        added.append(block.spec.node(inputs, block.result, name))
        attention = block.spec.attention
        _, queries, keys = attention.mask_shape
        width = len(block.constants["gamma"])
        constant = view.constant(block.query) is not None
        fused.append(Fused(name, queries, keys, width, attention.heads, constant))
    if not added:
        edited.CopyFrom(model)
    else:
        written = {name for node in added for name in node.output}
        put_nodes(edited, [n for n in view.nodes if written.isdisjoint(n.output)] + added)
    return BlockSurgery(edited, tuple(fused), tuple(refused))


def _view(model: ModelProto) -> GraphView:
    """A view with shapes also behind our operator, which stops ONNX's shape inference."""
    view = GraphView(model)
    for node in view.nodes:
        if (node.domain, node.op_type) != (DOMAIN, OP) or view.shape(node.output[0]):
            continue
        kind, shape = view.kind(node.input[0]), view.shape(node.input[0])
        if len(node.input) > 1 and len(shape) == 3:
            declared = helper.make_tensor_value_info(node.output[0], kind, [None, *shape[1:]])
            model.graph.value_info.append(declared)
            view = GraphView(model)
    return view


def _read_block(view: GraphView, attention: NodeProto, float32: bool) -> _Block:
    spec = MaskedAttentionSpec.from_node(attention)
    if spec.int8 is not None:
        raise RefusedError("it is int8")
    if len(attention.input) != 2:
        raise RefusedError(f"it has {len(attention.input)} inputs, not a query and one content")
    key_value = _linear_before(view, attention.input[1])
    norm, gamma, beta = _norm_before(view, key_value.source)
    content = _through_casts(view, norm.input[0])
    width = len(gamma)
    _, queries, keys = spec.mask_shape
    if view.shape(content)[1:] != (keys, width):
        raise RefusedError(f"its content {content} has shape {list(view.shape(content))}")
    out = _linear_after(view, attention.output[0], (queries, width))
    if (key_value.weight.shape, out.weight.shape) != ((2 * width, width), (width, width)):
        raise RefusedError("its projections are not W to 2 W and W to W")
    residual, result = _residual_after(view, out.result)
    if view.shape(residual)[1:] != (queries, width):
        raise RefusedError(f"its residual {residual} has shape {list(view.shape(residual))}")
    dtype = _common_type(view, (attention.input[0], content, residual), float32)
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    if epsilon <= 0:
        raise RefusedError(f"its LayerNorm's epsilon is {epsilon:g}")
    block = MaskedAttentionBlockSpec(spec, epsilon)
    if reason := why_not_fused(width, block):
        raise RefusedError(reason)
    constants = {
        "gamma": gamma,
        "beta": beta,
        "w_kv": key_value.weight,
        "b_kv": key_value.bias,
        "w_out": out.weight,
        "b_out": out.bias,
    }
    with np.errstate(over="ignore"):
        constants = {part: np.ascontiguousarray(v, dtype) for part, v in constants.items()}
    if not all(np.isfinite(values).all() for values in constants.values()):
        raise RefusedError(f"a weight is beyond {dtype.name}")
    return _Block(block, attention.input[0], content, residual, result, constants)


def _common_type(view: GraphView, names: tuple[str, ...], float32: bool) -> np.dtype[Any]:
    kinds = {view.kind(name) for name in names}
    if kinds != {TensorProto.FLOAT16} and not (float32 and kinds == {TensorProto.FLOAT}):
        raise RefusedError("its tensors are not all float16")
    return FLOATS[kinds.pop()]


def _linear_before(view: GraphView, name: str) -> _Linear:
    """The linear layer that makes a tensor."""
    result, name = name, _through_reshapes(view, name)
    node, bias = view.producer.get(name), None
    if node is not None and node.op_type == "Add":
        bias, name = _bias_of(view, node)
        node = view.producer.get(name)
    if node is None:
        raise RefusedError(f"{result} comes from no linear layer")
    return _linear(view, node, bias, result)


def _linear_after(view: GraphView, name: str, rows: tuple[int, int]) -> _Linear:
    """The linear layer that alone reads a tensor [B, *rows], and gives such a tensor."""
    name, by_tokens = _reshapes_after(view, name, rows, True)
    node = view.only_reader(name)
    if node is None or node.input[0] != name:
        raise RefusedError("its result goes to other places than an output projection")
    bias, result = None, node.output[0]
    if node.op_type == "MatMul":
        add = view.only_reader(result)
        if add is not None and add.op_type == "Add" and _constant_of(view, add) is not None:
            bias, _ = _bias_of(view, add)
            result = add.output[0]
    linear = _linear(view, node, bias, result)
    result, by_tokens = _reshapes_after(view, result, rows, by_tokens)
    if not by_tokens:
        raise RefusedError(f"{result} does not lie by images and tokens")
    return _Linear(name, linear.weight, linear.bias, result)


def _linear(view: GraphView, node: NodeProto, bias: Array | None, result: str) -> _Linear:
    """Reads a Gemm, or a MatMul and the bias that an Add gave."""
    settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = view.constant(node.input[1]) if len(node.input) > 1 else None
    if node.op_type not in {"Gemm", "MatMul"} or weight is None or weight.ndim != 2:
        raise RefusedError(f"{node.name} is a {node.op_type}, not a linear layer")
    if node.op_type == "Gemm":
        plain = (settings.get("alpha", 1.0), settings.get("beta", 1.0), settings.get("transA", 0))
        if plain != (1.0, 1.0, 0):
            raise RefusedError(f"{node.name} has alpha, beta, transA of {plain}")
        if len(node.input) > 2:
            bias = view.constant(node.input[2])
            if bias is None:
                raise RefusedError(f"the bias of {node.name} is computed")
    if not settings.get("transB", 0):
        weight = weight.T
    if bias is None:
        bias = np.zeros(len(weight), weight.dtype)
    if bias.size != len(weight):
        raise RefusedError(f"the bias of {node.name} has shape {list(bias.shape)}")
    return _Linear(_through_reshapes(view, node.input[0]), weight, bias.ravel(), result)


def _norm_before(view: GraphView, name: str) -> tuple[NodeProto, Array, Array]:
    """The LayerNorm over the last axis that makes a tensor; its node, gamma and beta."""
    name = _through_casts(view, name)
    node = view.producer.get(name)
    if node is None or node.op_type != "LayerNormalization" or name != node.output[0]:
        raise RefusedError(f"{name} comes from no LayerNorm")
    rank = len(view.shape(node.input[0]))
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    gamma = view.constant(node.input[1])
    if rank != 3 or axis not in {-1, 2} or gamma is None or gamma.ndim != 1:
        raise RefusedError(f"{node.name} is no LayerNorm of tokens [B, M, W]")
    beta = view.constant(node.input[2]) if len(node.input) > 2 else np.zeros_like(gamma)
    if beta is None or beta.shape != gamma.shape:
        raise RefusedError(f"{node.name} has no constant beta")
    return node, gamma, beta


def _residual_after(view: GraphView, name: str) -> tuple[str, str]:
    """What an Add, alone in reading the tensor, adds to it; and its result."""
    node = view.only_reader(name)
    if node is None or node.op_type != "Add":
        raise RefusedError("its projected result is not added to a residual")
    return node.input[1 - list(node.input).index(name)], node.output[0]


def _constant_of(view: GraphView, add: NodeProto) -> Array | None:
    """The constant vector that an Add adds, if it adds one."""
    values = [v for v in map(view.constant, add.input) if v is not None and v.ndim == 1]
    return values[0] if len(values) == 1 else None


def _bias_of(view: GraphView, add: NodeProto) -> tuple[Array, str]:
    """The bias that an Add adds, and the name of what it adds it to."""
    bias = _constant_of(view, add)
    if bias is None:
        raise RefusedError(f"{add.name} adds no bias")
    first_is_bias = view.constant(add.input[0]) is not None
    return bias, add.input[1 if first_is_bias else 0]


def _through_casts(view: GraphView, name: str) -> str:
    """Back over casts between float types: the kernel computes the LayerNorm in float32 anyway."""
    while (node := view.producer.get(name)) is not None and node.op_type == "Cast":
        if view.kind(node.input[0]) not in FLOATS:
            break
        name = node.input[0]
    return name


def _through_reshapes(view: GraphView, name: str) -> str:
    """Back over reshapes that leave the last axis alone: rows stay rows, in the same order."""
    while (node := view.producer.get(name)) is not None and node.op_type == "Reshape":
        columns = view.shape(node.input[0])[-1:]
        if not columns or columns != _reshaped(view, node)[-1:]:
            break
        name = node.input[0]
    return name


def _reshapes_after(
    view: GraphView, name: str, rows: tuple[int, int], by_tokens: bool
) -> tuple[str, bool]:
    """On over such reshapes; and whether the last result is [B, *rows], given if the first was."""
    while (node := view.only_reader(name)) is not None and node.op_type == "Reshape":
        shape = _reshaped(view, node)
        if shape[-1:] != rows[1:]:
            break
        by_tokens = len(shape) == 3 and shape[1:] == rows
        name = node.output[0]
    return name, by_tokens


def _reshaped(view: GraphView, node: NodeProto) -> tuple[int, ...]:
    """The shape that a Reshape asks for; empty if it is computed."""
    wanted = view.constant(node.input[1])
    return () if wanted is None else tuple(int(size) for size in wanted)
