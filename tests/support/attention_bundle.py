"""A bundle whose graph has one attention, small enough to be made in milliseconds.

The picture is cut into 64 tokens of 48 values; two heads of 16 with the diagonal masked. A black
picture scores 0, as in `tiny_bundle`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.tiny_bundle import SIZE, build_bundle, seal

TOKENS, PIXELS, HEADS, EACH = 64, 48, 2, 16
WIDTH = HEADS * EACH


def attention_model(amplitudes: bool = False) -> onnx.ModelProto:
    """The graph; with `amplitudes`, as if it had been calibrated for INT8."""
    random = np.random.default_rng(0)
    constants = {
        "unit": np.array(1 / 255, np.float32),
        "weight": random.normal(0, 0.4, (PIXELS, 3 * WIDTH)).astype(np.float32),
        "scale": np.array(EACH**-0.5, np.float32),
        "mask": np.where(np.eye(TOKENS), -1e4, 0).astype(np.float32),
        "tokens": np.array([-1, TOKENS, PIXELS], np.int64),
        "heads": np.array([-1, TOKENS, 3, HEADS, EACH], np.int64),
        "joined": np.array([-1, TOKENS, WIDTH], np.int64),
        "grid": np.array([-1, 8, 8], np.int64),
        "first": np.array([0], np.int64),
        "last": np.array([2], np.int64),
        "both": np.array([1, 2], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "unit"], ["pixels"]),
        node("Reshape", ["pixels", "tokens"], ["x"]),
        node("MatMul", ["x", "weight"], ["qkv"]),
        node("Reshape", ["qkv", "heads"], ["parts"]),
        node("Transpose", ["parts"], ["turned"], perm=[2, 0, 3, 1, 4]),
        node("Split", ["turned"], ["q5", "k5", "v5"], axis=0, num_outputs=3),
        *(node("Squeeze", [f"{n}5", "first"], [n]) for n in ("q", "k", "v")),
        node("Mul", ["q", "scale"], ["scaled"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["scaled", "kt"], ["scores"]),
        node("Add", ["scores", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["weights"], name="attention_softmax", axis=-1),
        node("MatMul", ["weights", "v"], ["mixed"], name="attention"),
        node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "joined"], ["result"]),
        node("ReduceMax", ["result", "last"], ["strength"], keepdims=0),
        node("Reshape", ["strength", "grid"], ["anomaly_map"]),
        node("ReduceMax", ["anomaly_map", "both"], ["score"], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attention",
        [value("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [
            value("anomaly_map", TensorProto.FLOAT, ["N", 8, 8]),
            value("score", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    if amplitudes:
        known = json.dumps({"qkv": 6.0, "result": 4.0})
        model.metadata_props.add(key="metal_edge.amplitudes", value=known)
    onnx.checker.check_model(model, full_check=True)
    return model


PROVEN = {"refused": None, "parity": {"images": 12}}


def attention_bundle(
    path: Path, model: onnx.ModelProto | None = None, int8: dict[str, Any] | None = PROVEN
) -> Path:
    """A whole bundle around it; see `tiny_bundle.build_bundle`.

    `int8` is what its manifest says of the plugin's INT8 attention.
    """
    build_bundle(path)
    file, manifest = path / "model.onnx", path / "manifest.json"
    onnx.save(model or attention_model(), file)
    known = json.loads(manifest.read_text(encoding="utf-8"))
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    known["files"]["model.onnx"] = {"size": len(content), "sha256": digest}
    if int8 is not None:
        known["provenance"] = {"precision": {"plugin_int8": int8}}
    manifest.write_text(json.dumps(known), encoding="utf-8")
    seal(path)
    return path
