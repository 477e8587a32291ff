"""The INT8 graph for TensorRT, from the same calibration as the one for ONNX Runtime.

TensorRT's rules differ from those that make x86 fast (`int8.py`):

* activations int8 with zero point 0. Its parser refuses uint8, and every other zero point;
* Q/DQ where an integer kernel reads: before a linear layer or convolution, and on the skip branch
  of a residual sum. Q/DQ behind a layer would keep bias, activation and sum from being fused into
  it ("Working with Quantized Types", TensorRT developer guide);
* the bias stays a float: DequantizeLinear of int32 does not exist there;
* a network is strongly typed: a scale has the type of the tensor around it. What is not integer
  can be FP16 (a base from `fp16.py`), which attention needs to be fused, or FP32.

Which layers are quantised, int8 weights and activation ranges are taken over unchanged. A range
[low, high] becomes +-max(-low, high): what has one sign, as after a clip, loses one bit.

Attention between the layers stays a float here. Whoever replaces it by an operator with int8
tensors needs their ranges: those of all tensors that calibration saw go along in the file's
metadata, which TensorRT passes over.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from metal_edge.errors import DataError

_LAYERS = {"MatMul", "Gemm", "Conv"}
_HIGHEST = 127
_AMPLITUDES = "metal_edge.amplitudes"


@dataclass(frozen=True, slots=True)
class QuantisedLayer:
    """What calibration says of a linear layer or convolution.

    Attributes:
        amplitude: largest magnitude of its input.
        weight: int8, of the shape that the layer's float weight has.
        scale: float32 [channels], of the weight, along `axis`.
    """

    amplitude: float
    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    axis: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibrated graph says.

    Attributes:
        layers: by the names of the nodes.
        sums: likewise; amplitude of either operand.
        amplitudes: by the names of the float tensors that the layers read or write.
    """

    layers: Mapping[str, QuantisedLayer]
    sums: Mapping[str, tuple[float, float]]
    amplitudes: Mapping[str, float] = field(default_factory=dict)


def write_tensorrt_int8(base: Path, calibrated: Path, destination: Path) -> int:
    """Writes the graph `tensorrt_int8` makes of two files; returns how many layers are INT8.

    Raises:
        DataError: see `read_calibration` and `tensorrt_int8`.
    """
    calibration = read_calibration(onnx.load(calibrated))
    onnx.save(tensorrt_int8(onnx.load(base), calibration), destination)
    return len(calibration.layers)


def read_calibration(model: ModelProto) -> Calibration:
    """Layers, weights and ranges out of a graph with explicit Q/DQ (`int8.py` writes them).

    Raises:
        DataError: nothing in it is quantised, or a weight is not symmetric int8.
    """
    graph = _Index(model)
    layers: dict[str, QuantisedLayer] = {}
    sums: dict[str, tuple[float, float]] = {}
    for node in model.graph.node:
        sources = [graph.producer.get(name) for name in node.input]
        dequantised = [s for s in sources[:2] if s is not None and s.op_type == "DequantizeLinear"]
        if len(dequantised) < 2 or dequantised[0].input[0] in graph.constant:
            continue
        constant = dequantised[1].input[0] in graph.constant  # also large ones, only stored as int8
        if node.op_type in _LAYERS and constant:
            layers[node.name] = graph.layer(node, *dequantised)
        elif node.op_type == "Add" and not constant:
            sums[node.name] = (graph.amplitude(dequantised[0]), graph.amplitude(dequantised[1]))
    if not layers:
        raise DataError("the calibrated graph has no quantised layer", "calibrate it again")
    return Calibration(layers, sums, read_amplitudes(model))


def note_amplitudes(model: ModelProto, amplitudes: Mapping[str, float]) -> None:
    """Writes largest magnitudes of float tensors into a graph's metadata."""
    known = json.dumps(dict(sorted(amplitudes.items())))
    model.metadata_props.append(onnx.StringStringEntryProto(key=_AMPLITUDES, value=known))


def read_amplitudes(model: ModelProto) -> dict[str, float]:
    """Largest magnitudes of float tensors by name, as `note_amplitudes` wrote them.

    Empty for graphs that were not calibrated.
    """
    found = next((p.value for p in model.metadata_props if p.key == _AMPLITUDES), "{}")
    return {str(name): float(value) for name, value in json.loads(found).items()}


def tensorrt_int8(base: ModelProto, calibration: Calibration) -> ModelProto:
    """Quantises the calibrated layers of a float graph as TensorRT wants them.

    Args:
        base: FP32 graph, or its FP16 version, from which `calibration`'s graph was made.
        calibration: see `read_calibration`.

    Returns:
        A new graph with inputs and outputs as before.

    Raises:
        DataError: `base` lacks one of the layers, or its weight has another shape.
    """
    model = ModelProto()
    model.CopyFrom(base)
    editor = _Editor(model)
    nodes = {node.name: node for node in model.graph.node}
    for name, layer in calibration.layers.items():
        if name not in nodes:
            raise DataError(f"the float graph has no layer {name}", "export both graphs again")
        editor.quantise_layer(nodes[name], layer)
    for name, amplitudes in calibration.sums.items():
        if name in nodes:
            editor.quantise_skip(nodes[name], amplitudes, set(calibration.layers))
    editor.finish()
    note_amplitudes(model, calibration.amplitudes)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Index:
    """Who produces a tensor, and the values of constants, of a graph with Q/DQ."""

    def __init__(self, model: ModelProto) -> None:
        self.producer = {out: node for node in model.graph.node for out in node.output}
        self.constant = {t.name: t for t in model.graph.initializer}

    def layer(self, node: NodeProto, activation: NodeProto, weight: NodeProto) -> QuantisedLayer:
        """Weight and range of a MatMul, Gemm or Conv whose operands are dequantised."""
        values = numpy_helper.to_array(self.constant[weight.input[0]])
        zero = self._value(weight.input[2]) if len(weight.input) > 2 else np.zeros(())
        if values.dtype != np.int8 or zero.any():
            raise DataError(
                f"the weight of {node.name} is not symmetric int8", "calibrate the model again"
            )
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1) % values.ndim
        scale = np.ravel(self._value(weight.input[1])).astype(np.float32)
        scale = np.broadcast_to(scale, values.shape[axis])
        return QuantisedLayer(self.amplitude(activation), values, scale, axis)

    def amplitude(self, node: NodeProto) -> float:
        """Largest magnitude that calibration saw, from a Q or DQ node with one scale."""
        zero = self._value(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        limits = np.iinfo(zero.dtype)
        lowest = -limits.max if limits.min < 0 else 0  # of int8, -127: symmetric
        steps = max(int(zero) - lowest, limits.max - int(zero))
        return steps * float(self._value(node.input[1]))

    def _value(self, name: str) -> NDArray[Any]:
        return np.asarray(numpy_helper.to_array(self.constant[name]))


class _Editor:
    """Adds Q/DQ to a float graph in place; nothing is valid before `finish`."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.constant = {t.name: t for t in model.graph.initializer}
        self.producer = {out: node for node in model.graph.node for out in node.output}
        self.readers = Counter(name for node in model.graph.node for name in node.input)
        self.added: list[NodeProto] = []
        self.done: dict[str, str] = {}  # float tensor -> its quantised and dequantised self

    def quantise_layer(self, node: NodeProto, layer: QuantisedLayer) -> None:
        """Q/DQ on the layer's input, an int8 weight with DQ in place of its float weight."""
        weight = self.constant.get(node.input[1])
        if weight is None or tuple(weight.dims) != layer.weight.shape:
            raise DataError(
                f"the weight of {node.name} differs between the float and the calibrated graph",
                "export both graphs again",
            )
        kind = helper.tensor_dtype_to_np_dtype(weight.data_type)
        node.input[0] = self._activation(node.input[0], layer.amplitude, kind)
        node.input[1] = self._weight(node.input[1], layer, kind)

    def quantise_skip(
        self, node: NodeProto, amplitudes: tuple[float, float], layers: Collection[str]
    ) -> None:
        """Q/DQ on the skip branch of a residual sum: the operand that others read as well.

        The sum is then fused into the layer that makes the other operand. Where there is none,
        nothing is gained and nothing done.
        """
        skips = [index for index, name in enumerate(node.input) if self.readers[name] > 1]
        if len(skips) != 1:
            return
        skip = skips[0]
        layer = self.producer.get(node.input[1 - skip])
        if layer is None or layer.name not in layers:
            return
        scale = self.constant[f"{layer.input[1].removesuffix('_dequantised')}_scale"]
        kind = helper.tensor_dtype_to_np_dtype(scale.data_type)
        node.input[skip] = self._activation(node.input[skip], amplitudes[skip], kind)

    def finish(self) -> None:
        """Nodes in topological order (the FP16 converter leaves none), constants that are read."""
        nodes = _in_order([*self.graph.node, *self.added])
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [t for t in self.constant.values() if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _activation(self, name: str, amplitude: float, kind: np.dtype[Any]) -> str:
        """Q and DQ of a tensor, shared by all that read it; the name to read instead."""
        if name not in self.done:
            scale = np.asarray(max(amplitude / _HIGHEST, least_scale(kind)), kind)
            pair = self._names(name, scale, np.zeros((), np.int8))
            quantised, dequantised = f"{name}_quantised", f"{name}_dequantised"
            self._insert("QuantizeLinear", [name, *pair], quantised)
            self._insert("DequantizeLinear", [quantised, *pair], dequantised)
            self.done[name] = dequantised
        return self.done[name]

    def _weight(self, name: str, layer: QuantisedLayer, kind: np.dtype[Any]) -> str:
        if name not in self.done:
            scale = np.maximum(layer.scale, least_scale(kind)).astype(kind)
            zero = np.zeros(scale.shape, np.int8)
            values = _in_steps_of(layer, scale)
            source, dequantised = f"{name}_int8", f"{name}_dequantised"
            self._constant(source, values)
            pair = self._names(name, scale, zero)
            self._insert("DequantizeLinear", [source, *pair], dequantised, axis=layer.axis)
            self.done[name] = dequantised
        return self.done[name]

    def _names(self, name: str, scale: NDArray[Any], zero: NDArray[np.int8]) -> list[str]:
        self._constant(f"{name}_scale", scale)
        self._constant(f"{name}_zero_point", zero)
        return [f"{name}_scale", f"{name}_zero_point"]

    def _constant(self, name: str, values: NDArray[Any]) -> None:
        self.constant[name] = numpy_helper.from_array(values, name)

    def _insert(self, kind: str, inputs: list[str], output: str, **attributes: int) -> None:
        name = f"{output}_{kind}"
        made = helper.make_node(kind, inputs, [output], name, None, None, None, **attributes)
        self.added.append(made)


def _in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Copies of the nodes, each behind those whose output it reads."""
    producer = {out: index for index, node in enumerate(nodes) for out in node.output}
    order: TopologicalSorter[int] = TopologicalSorter()
    for index, node in enumerate(nodes):
        order.add(index, *(producer[name] for name in node.input if name in producer))
    return [NodeProto.FromString(nodes[i].SerializeToString()) for i in order.static_order()]


def _in_steps_of(layer: QuantisedLayer, scale: NDArray[Any]) -> NDArray[np.int8]:
    """The int8 weight, coarser where its own step is below what the scale's type can hold."""
    shape = [1] * layer.weight.ndim
    shape[layer.axis] = -1
    ratio = np.minimum(layer.scale.astype(np.float64) / least_scale(scale.dtype), 1.0)
    return np.rint(layer.weight * ratio.reshape(shape)).astype(np.int8)


def least_scale(kind: np.dtype[Any]) -> float:
    """Least normal number: below, a scale keeps ever fewer digits and at last becomes 0."""
    return float(np.finfo(kind).smallest_normal)
