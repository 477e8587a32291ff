"""The device check's report, Markdown. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.device.agreement import Agreement
from tools.device.kernels import Kernels


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of `Runner.run`, one frame: copies to and from the GPU are included."""

    p50: float
    p99: float
    frames: int


@dataclass(frozen=True, slots=True)
class Engine:
    """One precision on this device; `failure` in place of everything else that then is None.

    Attributes:
        plan: what `build-engine --json` says of the plan: bytes, seconds, whose attention it has,
            and of every attention that was tried its median or why it is out, `candidates`.
    """

    precision: str
    failure: str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    agreement: Agreement | None = None
    latency: Latency | None = None

    @property
    def passed(self) -> bool:
        """Built, finite, and every verdict is the reference's."""
        agreement = self.agreement
        return self.failure is None and agreement is not None and agreement.flipped == 0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run of the check found.

    Attributes:
        machine: names and versions, in the order in which they are printed.
        model: the network's kind; None: kernels alone.
        reference: ONNX Runtime FP32's latency on the same machine.
        command: that made it.
        kernels: the attention kernels by themselves.
    """

    machine: dict[str, str]
    model: str | None
    reference: Latency | None
    engines: Sequence[Engine]
    command: str
    utc: str
    kernels: Kernels = field(default_factory=Kernels)

    @property
    def passed(self) -> bool:
        """Every engine passed, and no kernel gave a wrong result."""
        return self.kernels.wrong is None and all(engine.passed for engine in self.engines)


def render(report: Report) -> str:
    """The page."""
    facts = [f"* {name}: {value}" for name, value in report.machine.items()]
    model = "the kernels alone" if report.model is None else f"model: {report.model}"
    parts = [
        f"# Device check, {report.utc[:10]}",
        f"`{report.command}`; {model}.",
        "\n".join(facts),
    ]
    if report.reference is not None:
        parts += _engines(report.engines, report.reference)
    parts += _attention(report.engines)
    parts += _kernels(report.kernels)
    return "\n\n".join(parts) + "\n"


def _engines(engines: Sequence[Engine], reference: Latency) -> list[str]:
    lines = [
        "| precision | plan MB | build s | p50 ms | p99 ms | worst score change / threshold |"
        " map correlation | verdicts that differ | |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| ONNX Runtime FP32, CPU | | | {_ms(reference)} | | | | reference |",
    ]
    lines += [_row(engine) for engine in engines]
    parts = ["\n".join(lines)]
    failures = [f"* {e.precision}: {e.failure}" for e in engines if e.failure is not None]
    if failures:
        parts.append("Failed:\n\n" + "\n".join(failures))
    parts.append(
        "Layers of each plan, as TensorRT's inspector lists them: `layers-<precision>.json`."
    )
    return parts


def _attention(engines: Sequence[Engine]) -> list[str]:
    """Native against plugin, as `build-engine --attention auto` timed them."""
    plans = [(engine.precision, engine.plan) for engine in engines if engine.plan.get("attention")]
    if not plans:
        return []
    tried = {precision: _tried(plan) for precision, plan in plans}
    names = sorted({name for found in tried.values() for name in found if found[name]["correct"]})
    lines = [
        f"| precision | {' | '.join([*(f'{name}, ms' for name in names), 'in the plan'])} |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for precision, plan in plans:
        medians = {name: one.get("median_ms") for name, one in tried[precision].items()}
        cells = [f"{medians[name]:.3f}" if medians.get(name) else "" for name in names]
        lines.append(f"| {precision} | {' | '.join([*cells, str(plan['attention'])])} |")
    reasons = [
        f"* {precision}: {name} is out: {one['why']}"
        for precision, found in tried.items()
        for name, one in found.items()
        if not one["correct"]
    ]
    reasons += [
        f"* {precision}: {plan['without_plugin']}"
        for precision, plan in plans
        if plan.get("without_plugin")
    ]
    parts = ["## Attention: TensorRT's own, and the plugin's", "\n".join(lines)]
    return parts + (["\n".join(reasons)] if reasons else [])


def _tried(plan: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["attention"]: one for one in plan.get("candidates", ())}


def _kernels(kernels: Kernels) -> list[str]:
    parts = ["## The attention kernels by themselves"]
    if kernels.wrong is not None:
        parts.append(f"WRONG: {kernels.wrong}")
    if kernels.table is not None:
        parts.append(f"```\n{kernels.table.rstrip()}\n```")
    if kernels.notes:
        parts.append("\n".join(f"* {note}" for note in kernels.notes))
    parts += [text for title, body in kernels.parts for text in (f"### {title}", body)]
    return parts if len(parts) > 1 else []


def _row(engine: Engine) -> str:
    if engine.failure is not None:
        return f"| TensorRT {engine.precision} | | | | | | | | FAILED |"
    size = f"{engine.plan['bytes'] / 1e6:.1f}" if "bytes" in engine.plan else ""
    build = f"{engine.plan['seconds']:.0f}" if "seconds" in engine.plan else ""
    latency = " | " if engine.latency is None else _ms(engine.latency)
    agreement = engine.agreement
    told = (
        " | | "
        if agreement is None
        else f"{agreement.worst_score:.4f} | {agreement.map_correlation:.5f} |"
        f" {agreement.flipped} of {agreement.frames}"
    )
    verdict = "ok" if engine.passed else "FAILED"
    name = f"TensorRT {engine.precision}"
    return f"| {name} | {size} | {build} | {latency} | {told} | {verdict} |"


def _ms(latency: Latency) -> str:
    return f"{latency.p50:.2f} | {latency.p99:.2f}"
