"""What `build-engine` tells: sentences and a table for a person, one object for a script."""

from __future__ import annotations

from typing import Any

from metal_edge.cli.bundling import Built
from metal_edge.evaluation.thresholds import ConformalThreshold
from metal_edge.export.parity import Margin


def summary(built: Built) -> dict[str, object]:
    """Everything as JSON values."""
    manifest = built.bundle.manifest
    return {
        "bundle": str(built.bundle.path),
        "sha256": built.bundle.digest,
        "precision": manifest.precision,
        "backend": manifest.backend,
        "bytes": manifest.files["model.onnx"].size,
        "fp32_bytes": built.fp32_bytes,
        "parity": built.parity,
        "threshold": threshold_dict(built.threshold),
        "golden_images": len(built.bundle.golden.images),
        "decision_margin": built.margin.as_dict(),
        "accuracy": built.accuracy,
        "calibration_record": None if built.record is None else str(built.record),
        "warnings": list(built.warnings),
    }


def sentence(built: Built) -> str:
    """What a person wants to know, the sweep as a table first."""
    manifest = built.bundle.manifest
    size = manifest.files["model.onnx"].size
    parity = built.parity
    lines = [
        f"{built.bundle.path}: {manifest.precision} for {manifest.backend},"
        f" {size / 1e6:.1f} MB (fp32 {built.fp32_bytes / 1e6:.1f} MB)",
        f"  parity with fp32 on {parity['images']} held-out images: map correlation"
        f" {parity['map_correlation']}, median score change"
        f" {100 * parity['median_score_change']:.2f} %,"
        f" {parity['changed_verdicts']} verdicts changed",
        *(_deviation(name, parity[key]) for name, key in _SETS),
        f"  threshold {built.threshold.score:.6g}: {built.threshold.statement()}",
        f"  {len(built.bundle.golden.images)} golden images, same verdicts as fp32;"
        f" {_margin(built.margin)}; id {built.bundle.digest[:12]}",
    ]
    if built.accuracy is not None:
        lines = [*sweep_table(built.accuracy), *lines]
    if built.record is not None:
        lines.append(f"  calibration record: {built.record}")
    return "\n".join(lines)


_SETS = (("held-out", "held_out"), ("adversarial", "adversarial"))


def _deviation(name: str, found: dict[str, Any]) -> str:
    return (
        f"    worst of {found['images']} {name} images: map error"
        f" {100 * found['map_error']:.2f} % (tolerance {100 * found['map_tolerance']:.2f} %),"
        f" score error {100 * found['score_error']:.2f} %"
        f" (tolerance {100 * found['score_tolerance']:.2f} %)"
    )


def _margin(margin: Margin) -> str:
    sides = (
        (margin.passing, "below the threshold for the nearest that passes"),
        (margin.rejected, "above for the nearest that is rejected"),
    )
    said = [f"{100 * value:.1f} % {words}" for value, words in sides if value is not None]
    return "decision margin " + (", ".join(said) if said else "unknown")


def sweep_table(accuracy: dict[str, Any]) -> list[str]:
    """The sweep and what was chosen, as lines."""
    rows = accuracy["sweep"]
    width = max([len("on the golden images"), *(len(row["block"]) for row in rows)])
    head = f"{'block alone in INT8':<{width}} layers  map corr.  score change  AUROC loss"
    lines = [f"{head} image / pixel"] if rows else []
    for row in rows:
        kept = "  stays FP32" if row["fp32"] else ""
        lines.append(f"{row['block']:<{width}} {row['layers']:>6}  {_effect(row['alone'])}{kept}")
    lines.append(f"{'all blocks in INT8':<{width}} {'':>6}  {_effect(accuracy['all_int8'])}")
    if accuracy["fp32_blocks"]:
        lines.append(f"{'chosen':<{width}} {'':>6}  {_effect(accuracy['result'])}")
    golden = accuracy.get("golden")
    if golden is not None:
        exceeded = "" if golden["within_budget"] else "  exceeds the budget"
        lines.append(f"{'on the golden images':<{width}} {'':>6}  {_effect(golden)}{exceeded}")
    labelled = accuracy["defective_images"]
    lines.append(
        f"compared on {accuracy['images']} images, {labelled} of them defective; budget: AUROC loss"
        f" {accuracy['budget']['auroc_loss']:g}"
        + (f", image AUROC steps {accuracy['budget']['image_auroc_step']:.2g}" if labelled else "")
    )
    return lines


def _effect(effect: dict[str, Any] | None) -> str:
    if effect is None:
        return "not tried, out of time"
    change = effect["score_change"]
    image, pixel = effect["image_auroc_loss"], effect["pixel_auroc_loss"]
    return (
        f"{_number(effect['map_correlation'], '9.5f')}"
        f"  {_number(None if change is None else 100 * change, '10.2f')} %"
        f"  {_number(image, '7.4f')} / {_number(pixel, '7.4f')}"
    )


def _number(value: float | None, form: str) -> str:
    return "-".rjust(int(form.partition(".")[0])) if value is None else format(value, form)


def threshold_dict(threshold: ConformalThreshold) -> dict[str, object]:
    """A threshold and its promise as JSON values."""
    return {
        "score": threshold.score,
        "false_reject_rate": threshold.false_reject_rate,
        "guaranteed_rate": threshold.guaranteed_rate,
        "upper95": threshold.upper95,
        "calibration_images": threshold.n,
        "statement": threshold.statement(),
    }
