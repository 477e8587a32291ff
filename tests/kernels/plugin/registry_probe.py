"""Asks the plugin registry of TensorRT's lean runtime: a child process of test_registry.

Standard input: {"library": path, "good": attributes, "bad": attributes}; output: what came of it.
Nothing here constructs `Runtime`, which without a driver crashes when the process ends.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_lean_bindings as trt


def fields(attributes: dict[str, Any]) -> Any:
    kinds = trt.PluginFieldType
    made = []
    for name, value in attributes.items():
        if isinstance(value, str):
            data = np.frombuffer(value.encode() + b"\0", np.int8)
            made.append(trt.PluginField(name, data, kinds.CHAR))
        elif isinstance(value, float):
            made.append(trt.PluginField(name, np.float32([value]), kinds.FLOAT32))
        else:
            made.append(trt.PluginField(name, np.int32(np.atleast_1d(value)), kinds.INT32))
    return trt.PluginFieldCollection(made)


def names(registry: Any) -> list[list[str]]:
    return [
        [creator.name, creator.plugin_version, creator.plugin_namespace]
        for creator in registry.all_creators
    ]


def main() -> None:
    asked = json.load(sys.stdin)
    registry = trt.get_plugin_registry()
    answer: dict[str, Any] = {"version": trt.__version__, "before": names(registry)}
    handle = registry.load_library(asked["library"])
    answer["loaded"] = names(registry)
    creator = registry.get_creator("MaskedAttention", "1", "")
    answer["fields"] = [field.name for field in creator.field_names]
    build = trt.TensorRTPhase.BUILD
    answer["refused"] = creator.create_plugin("bad", fields(asked["bad"]), build) is None
    plugin = creator.create_plugin("good", fields(asked["good"]), build)

    kinds = trt.PluginCapabilityType
    building = plugin.get_capability_interface(kinds.BUILD)
    answer["outputs"] = building.num_outputs
    answer["timing_cache_id"] = building.timing_cache_id
    answer["interfaces"] = [
        plugin.get_capability_interface(kind).interface_info.kind
        for kind in (kinds.CORE, kinds.BUILD, kinds.RUNTIME)
    ]

    del plugin, building, creator  # before their code is unloaded
    registry.deregister_library(handle)
    answer["after"] = names(registry)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
