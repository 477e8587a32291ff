"""`metal-edge inspect`: what a bundle is, without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from metal_edge.bundle import Bundle
from metal_edge.cli.console import print_json, say_result
from metal_edge.errors import UnavailableError
from metal_edge.runtime.tensorrt_load import machine_roots

_NAME_WIDTH = 44


def run_inspect(path: Path, as_json: bool) -> None:
    """Verifies a bundle's hashes, reads its graph, and prints both.

    Raises:
        MissingInputError: no bundle there.
        BundleError: damaged, foreign, or of an unsupported opset.
        UnavailableError: onnx is not installed.
    """
    bundle = Bundle.open(path)
    try:
        from metal_edge.export.inspect import describe_bundle
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"onnx", "google"}:
            raise
        raise UnavailableError(
            "reading a graph needs the Python package onnx, which is not installed",
            "pip install onnx (the hashes of the bundle are right)",
        ) from error
    found = describe_bundle(bundle, machine_roots())
    if as_json:
        print_json(found)
    else:
        say_result(as_text(found))


def as_text(found: dict[str, Any]) -> str:
    """The description for a person, about a screen and one line per layer."""
    sections = (
        _head(found),
        _graph(found["graph"]),
        _layers(found),
        _sizes(found["sizes"]),
        _threshold(found["threshold"], found["golden"]),
        _traffic(found["traffic"]),
        *([_plans(found["plans"])] if found["backend"] == "tensorrt" else []),
        _provenance(found["provenance"]),
    )
    return "\n\n".join("\n".join(lines) for lines in sections)


def _head(found: dict[str, Any]) -> list[str]:
    verified, size = found["verified"], found["preprocess"]
    kind = found["model"].get("kind", found["model"].get("family", "unnamed"))
    crop = "whole frame" if size["crop"] is None else f"crop {size['crop']}"
    return [
        f"{found['bundle']}: {found['name']} {found['version']}, {kind}, {found['precision']}"
        f" for {found['backend']}, {found['created_utc']}",
        f"  sha256    {found['sha256']}",
        f"  verified  {verified['files']} files, {_size(verified['bytes'])}:"
        " every SHA-256 is right",
        f"  frames    {size['source_width']}x{size['source_height']}, {crop}, to"
        f" {size['width']}x{size['height']} {size['color']} {size['dtype']}",
    ]


def _graph(graph: dict[str, Any]) -> list[str]:
    ends = [
        f"  {title:<9} {value['name']} {value['type']} {_shape(value['shape'])}"
        for title, side in (("input", "inputs"), ("output", "outputs"))
        for value in graph[side]
    ]
    kinds = [f"{kind} {row['nodes']}" for kind, row in graph["kinds"].items()]
    return [
        f"graph: {graph['nodes']} nodes, opset {graph['opset']}, batch {graph['batch']}",
        *ends,
        *_wrapped("  nodes     ", kinds),
    ]


def _layers(found: dict[str, Any]) -> list[str]:
    """One line per layer; reasons are long and few, so they stand below, by number."""
    counts = ", ".join(f"{n} {name}" for name, n in found["layers_by_precision"].items())
    head = f"  {'layer':<{_NAME_WIDTH}} {'kind':<8} {'precision':<10} {'weights':<8}"
    lines = [f"layers that multiply: {counts}"]
    lines.append(f"{head} {'activations':<16} {'MB':>7} {'MMAC':>8}")
    nodes = Counter(found["reasons"].values())
    numbers = {reason: number for number, reason in enumerate(nodes, start=1)}
    for layer in found["layers"]:
        name = layer["name"][-_NAME_WIDTH:]
        activations = ", ".join(layer["activations"])
        mark = f" [{numbers[layer['reason']]}]" if layer["reason"] else ""
        lines.append(
            f"  {name:<{_NAME_WIDTH}} {layer['kind']:<8} {layer['precision']:<10}"
            f" {layer['weights'] or '-':<8} {activations:<16} {layer['weight_bytes'] / 1e6:>7.3f}"
            f" {layer['macs'] / 1e6:>8.2f}{mark}"
        )
    if nodes:
        lines.append("nodes that the manifest keeps apart, and why")
    lines += [f"  [{numbers[reason]}] {n} nodes: {reason}" for reason, n in nodes.items()]
    return lines


def _sizes(sizes: dict[str, Any]) -> list[str]:
    rows = [
        f"  {dtype:<9} {_size(row['bytes']):>9} in {row['tensors']} tensors"
        for dtype, row in sizes["constants"].items()
    ]
    return [f"sizes: model.onnx {_size(sizes['model'])}; weights and constants by type", *rows]


def _threshold(threshold: dict[str, Any], golden: dict[str, Any]) -> list[str]:
    lines = [
        f"threshold: {threshold['score']:.6g} ({threshold['method']})",
        f"  promise   {threshold['promise']}",
        f"golden images: each must score as stored within {golden['tolerance']:.3g}",
    ]
    for image in golden["images"]:
        near = "  <- nearest to the threshold" if image["file"] == golden["nearest"] else ""
        lines.append(
            f"  {image['file']:<16} {'good' if image['good'] else 'bad':<5}"
            f" {image['score']:>11.6g}  {image['verdict']:<7} margin {image['margin']:+.3g},"
            f" {image['tolerances']:.0f} tolerances{near}"
        )
    return lines


def _traffic(traffic: dict[str, Any]) -> list[str]:
    def parts(of: dict[str, int]) -> str:
        return ", ".join(f"{_size(n)} {name}" for name, n in of.items() if n) or "none"

    macs = ", ".join(f"{n / 1e6:.0f} M in {name}" for name, n in traffic["macs"].items())
    lines = [
        f"one frame, on paper: {_size(traffic['bytes'])} through memory, at least"
        f" {_size(traffic['least_bytes'])} if every activation stays in a cache",
        f"  weights   {parts(traffic['weights'])}",
        f"  read      {parts(traffic['activations_read'])}",
        f"  written   {parts(traffic['activations_written'])}",
        f"  MACs      {traffic['total_macs'] / 1e6:.0f} M: {macs}",
    ]
    if traffic["unknown_shapes"]:
        lines.append(f"  not counted: {len(traffic['unknown_shapes'])} tensors of unknown shape")
    return lines


def _plans(plans: list[dict[str, Any]]) -> list[str]:
    if not plans:
        return ["TensorRT plans: none in this machine's caches; build-engine builds one"]
    lines = ["TensorRT plans of this model in this machine's caches"]
    for plan in plans:
        plugin = plan["plugin_sha256"]
        lines += [
            f"  {plan['folder']}",
            f"    for       {plan['gpu']} (sm {plan['compute_capability']}), TensorRT"
            f" {plan['tensorrt']}, {f'plugin {plugin[:8]}' if plugin else 'no plugin'}",
            f"    built     {plan['created_utc']} in {plan.get('seconds', '?')} s,"
            f" {_size(plan['bytes'])}, {plan['damaged'] or 'SHA-256 is right'}",
            f"    attention {plan.get('attention', 'native')}"
            f" (asked for {plan.get('asked', 'native')})",
            *map(_candidate, plan.get("candidates", ())),
        ]
        if "without_plugin" in plan:
            lines.append(f"      without the plugin: {plan['without_plugin']}")
    return lines


def _candidate(one: dict[str, Any]) -> str:
    if not one["correct"]:
        return f"      {one['attention']:<12} out: {one['why']}"
    return (
        f"      {one['attention']:<12} {one['median_ms']:>8.3f} ms, median of {one['frames']}"
        f" frames; {one['golden_images']} golden images pass, worst difference"
        f" {one['worst_difference']:.2g}, tolerance {one['tolerance']:.2g}"
    )


def _provenance(provenance: dict[str, Any]) -> list[str]:
    lines = ["provenance"]
    for key, value in sorted(provenance.items()):
        text = (
            ", ".join(f"{k} {_short(v)}" for k, v in value.items())
            if isinstance(value, dict)
            else _short(value)
        )
        lines.append(f"  {key:<20} {text}")
    return lines


def _short(value: Any) -> str:
    """Lists and objects by their length: --json has them whole."""
    return f"[{len(value)}]" if isinstance(value, list | dict) else str(value)


def _shape(shape: list[int] | None) -> str:
    return "of unknown shape" if shape is None else "x".join(map(str, shape))


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count} B"


def _wrapped(head: str, words: list[str], width: int = 100) -> list[str]:
    lines = [head]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append(" " * len(head))
        lines[-1] += f"{word}  "
    return [line.rstrip() for line in lines]
