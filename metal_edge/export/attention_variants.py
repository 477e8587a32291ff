"""The graphs that the plugin could run in place of one with native attention. Needs onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from metal_edge.export.attention_surgery import replace_attention
from metal_edge.export.attention_surgery_block import fuse_blocks


@dataclass(frozen=True, slots=True)
class PluginGraph:
    """One of them.

    Attributes:
        name: what the plugin does: "plugin", "plugin int8" or "plugin block".
        notes: what the surgery did and left, for the plan's manifest.
    """

    name: str
    model: ModelProto
    notes: dict[str, Any]


def plugin_graphs(source: ModelProto) -> tuple[list[PluginGraph], tuple[str, ...]]:
    """All graphs worth a try, the most promising first, and why attentions stay native.

    INT8 attention where calibration has left ranges, attention in the graph's float type, and
    whole ZeroLeak blocks in one launch.
    """
    first = replace_attention(source)
    if not first.replaced:
        return [], first.refused
    found = []
    floats = first
    if any(one.dtype == "int8" for one in first.replaced):
        floats = replace_attention(source, int8=False)
        found.append(_graph("plugin int8", first.model, first.replaced, first.refused))
    found.append(_graph("plugin", floats.model, floats.replaced, floats.refused))
    blocks = fuse_blocks(floats.model)
    if blocks.fused:
        found.append(_graph("plugin block", blocks.model, blocks.fused, floats.refused))
    return found, first.refused


def _graph(
    name: str, model: ModelProto, done: tuple[Any, ...], kept: tuple[str, ...]
) -> PluginGraph:
    return PluginGraph(name, model, {"replaced": len(done), "kept": list(kept)})
