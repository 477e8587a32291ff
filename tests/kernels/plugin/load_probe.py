"""Loads the plugin as `metal_edge.runtime.plugin` does, by the real registry; a child process.

Standard input: {"library": path, "nodes": [attributes, ...]}; output: what came of it. Attributes
become fields as TensorRT's ONNX parser makes them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import tensorrt_lean_bindings as trt

from metal_edge.errors import UnavailableError
from metal_edge.runtime.plugin import CREATOR, NAMESPACE, VARIABLE, VERSION, load_plugin


def fields(attributes: dict[str, Any]) -> Any:
    kinds = trt.PluginFieldType
    made, alive = [], []
    for name, value in attributes.items():
        if isinstance(value, str):
            data, kind = np.frombuffer(value.encode() + b"\0", np.int8), kinds.CHAR
        else:
            data = np.atleast_1d(value)
            whole = data.dtype.kind == "i"
            data = data.astype(np.int32 if whole else np.float32)
            kind = kinds.INT32 if whole else kinds.FLOAT32
        alive.append(data)
        made.append(trt.PluginField(name, data, kind))
    return trt.PluginFieldCollection(made), alive


def main() -> None:
    asked = json.load(sys.stdin)
    answer: dict[str, Any] = {"refused": []}
    for library in asked["wrong"]:
        os.environ[VARIABLE] = library
        try:
            load_plugin(trt)
        except UnavailableError as error:
            answer["refused"].append(str(error))
    os.environ[VARIABLE] = asked["library"]
    answer["loaded"] = [load_plugin(trt).sha256 for _ in range(2)]
    creator = trt.get_plugin_registry().get_creator(CREATOR, VERSION, NAMESPACE)
    answer["made"] = []
    for index, attributes in enumerate(asked["nodes"]):
        collection, alive = fields(attributes)
        plugin = creator.create_plugin(f"node {index}", collection, trt.TensorRTPhase.BUILD)
        answer["made"].append(plugin is not None)
        del plugin, collection, alive
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
