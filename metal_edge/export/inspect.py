"""Everything a bundle says about itself, as plain data: what `metal-edge inspect` shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metal_edge.bundle import MANIFEST, MODEL, SEAL, Bundle
from metal_edge.export.graph import Graph, read_graph
from metal_edge.export.tensorrt_inspect import plans_of
from metal_edge.export.traffic import Layer, Traffic, layers, traffic


def describe_bundle(bundle: Bundle, plan_roots: Sequence[Path] = ()) -> dict[str, Any]:
    """Describes a bundle whose hashes were verified when it was opened.

    Args:
        bundle: it.
        plan_roots: where its TensorRT plans may lie, if it is built for TensorRT.

    Returns:
        JSON data. Sizes are in bytes; `traffic` is per frame at batch 1; a golden image's
        `margin` is its score minus the threshold, `tolerances` that distance in units of what
        the golden check allows.

    Raises:
        BundleError: its ONNX file is damaged, foreign, or of an unsupported opset.
    """
    manifest = bundle.manifest
    graph = read_graph(bundle.model_path)
    found = layers(graph)
    reasons = reasons_of(manifest.provenance, {node.name for node in graph.nodes})
    return {
        "bundle": str(bundle.path),
        "sha256": bundle.digest,
        "name": manifest.name,
        "version": manifest.version,
        "created_utc": manifest.created_utc,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "verified": {
            "files": len(manifest.files) + len((MANIFEST, SEAL)),
            "bytes": sum(entry.size for entry in manifest.files.values()),
        },
        "model": manifest.model,
        "preprocess": asdict(manifest.preprocess),
        "graph": _graph(graph),
        "layers": [_layer(layer, reasons) for layer in found],
        "layers_by_precision": dict(Counter(layer.precision for layer in found)),
        "reasons": reasons,
        "sizes": {
            "model": manifest.files[MODEL].size,
            "files": {name: entry.size for name, entry in sorted(manifest.files.items())},
            "constants": _constants(graph),
        },
        "threshold": _threshold(bundle),
        "golden": _golden(bundle),
        "traffic": _traffic(traffic(graph)),
        "plans": plans_of(bundle, plan_roots) if manifest.backend == "tensorrt" else [],
        "provenance": manifest.provenance,
    }


def reasons_of(provenance: object, names: set[str]) -> dict[str, str]:
    """Which nodes the manifest speaks of, and what it says of them.

    Understood anywhere in the provenance: objects with a `reason` beside `nodes` or `layers` (a
    list) or `node`, `name` or `layer` (one), an object {node: reason}, and a bare list of names,
    whose reason is its own key. A `group` beside the reason goes before it.

    Args:
        names: nodes of the graph; everything else in the provenance is passed over.
    """
    return {node: reason for node, reason in _spoken(provenance, "") if node in names}


def _spoken(value: object, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        reason = value.get("reason")
        named = [value[k] for k in ("nodes", "layers", "node", "name", "layer") if k in value]
        if isinstance(reason, str) and named:
            nodes = named[0] if isinstance(named[0], list) else [named[0]]
            group = value.get("group")
            reason = f"{group}: {reason}" if isinstance(group, str) else reason
            yield from ((node, reason) for node in nodes if isinstance(node, str))
            return
        for name, inner in value.items():
            if isinstance(inner, str):
                yield name, inner
            else:
                yield from _spoken(inner, name)
    elif isinstance(value, list | tuple):
        for inner in value:
            if isinstance(inner, str):
                yield inner, key.replace("_", " ")
            else:
                yield from _spoken(inner, key)


def _graph(graph: Graph) -> dict[str, Any]:
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for node in graph.nodes:
        kinds[node.kind][graph.tensors[node.outputs[0]].dtype] += 1
    return {
        "opset": graph.opset,
        "batch": graph.batch,
        "inputs": _values(graph, graph.inputs),
        "outputs": _values(graph, graph.outputs),
        "nodes": len(graph.nodes),
        "kinds": {
            kind: {"nodes": types.total(), "types": dict(sorted(types.items()))}
            for kind, types in sorted(kinds.items(), key=lambda item: (-item[1].total(), item[0]))
        },
    }


def _values(graph: Graph, names: Sequence[str]) -> list[dict[str, Any]]:
    found = [graph.tensors[name] for name in names]
    return [
        {"name": t.name, "type": t.dtype, "shape": None if t.shape is None else list(t.shape)}
        for t in found
    ]


def _layer(layer: Layer, reasons: dict[str, str]) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "precision": layer.precision,
        "weights": layer.weights,
        "activations": list(layer.activations),
        "weight_bytes": layer.weight_bytes,
        "macs": layer.macs,
        "reason": reasons.get(layer.name),
    }


def _constants(graph: Graph) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for tensor in graph.tensors.values():
        if tensor.constant:
            row = total.setdefault(tensor.dtype, {"tensors": 0, "numbers": 0, "bytes": 0})
            row["tensors"] += 1
            row["numbers"] += tensor.numbers
            row["bytes"] += tensor.bytes
    return dict(sorted(total.items(), key=lambda item: -item[1]["bytes"]))


def _threshold(bundle: Bundle) -> dict[str, Any]:
    found = bundle.thresholds
    rate, count = found.false_reject_rate, found.calibration_images
    promise = bundle.manifest.provenance.get("promise")
    plain = f"at most {100 * rate:g} % of good parts rejected, from {count} held-out good images"
    return {**found.model_dump(), "promise": promise if isinstance(promise, str) else plain}


def _golden(bundle: Bundle) -> dict[str, Any]:
    threshold, tolerance = bundle.thresholds.score, bundle.golden.tolerance
    images = [
        {
            "file": image.file,
            "good": image.good,
            "score": image.score,
            "verdict": "pass" if image.score < threshold else "reject",
            "margin": image.score - threshold,
            "tolerances": abs(image.score - threshold) / tolerance,
        }
        for image in bundle.golden.images
    ]
    nearest = min(images, key=lambda image: float(image["tolerances"]))
    return {"tolerance": tolerance, "images": images, "nearest": nearest["file"]}


def _traffic(found: Traffic) -> dict[str, Any]:
    return {
        "weights": dict(found.weights),
        "activations_read": dict(found.read),
        "activations_written": dict(found.written),
        "bytes": found.total_bytes,
        "least_bytes": found.least_bytes,
        "macs": dict(found.macs),
        "total_macs": sum(found.macs.values()),
        "unknown_shapes": list(found.unknown),
    }
