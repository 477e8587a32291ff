"""The device check's report, Markdown. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.device.agreement import Agreement


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of `Runner.run`, one frame: copies to and from the GPU are included."""

    p50: float
    p99: float
    frames: int


@dataclass(frozen=True, slots=True)
class Engine:
    """One precision on this device; `failure` in place of everything else that then is None."""

    precision: str
    failure: str | None = None
    plan_bytes: int | None = None
    build_s: float | None = None
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
        reference: ONNX Runtime FP32's latency on the same machine.
        command: that made it.
    """

    machine: dict[str, str]
    model: str
    reference: Latency
    engines: Sequence[Engine]
    command: str
    utc: str


def render(report: Report) -> str:
    """The page."""
    facts = [f"* {name}: {value}" for name, value in report.machine.items()]
    lines = [
        "| precision | plan MB | build s | p50 ms | p99 ms | worst score change / threshold |"
        " map correlation | verdicts that differ | |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| ONNX Runtime FP32, CPU | | | {_ms(report.reference)} | | | | reference |",
    ]
    lines += [_row(engine) for engine in report.engines]
    failures = [f"* {e.precision}: {e.failure}" for e in report.engines if e.failure is not None]
    parts = [
        f"# Device check, {report.utc[:10]}",
        f"`{report.command}`; model: {report.model}.",
        "\n".join(facts),
        "\n".join(lines),
    ]
    if failures:
        parts.append("Failed:\n\n" + "\n".join(failures))
    parts.append(
        "TensorRT runs its native attention: this version has no plugin to compare it with.\n"
        "Layers of each plan, as TensorRT's inspector lists them: `layers-<precision>.json`."
    )
    return "\n\n".join(parts) + "\n"


def _row(engine: Engine) -> str:
    if engine.failure is not None:
        return f"| TensorRT {engine.precision} | | | | | | | | FAILED |"
    size = "" if engine.plan_bytes is None else f"{engine.plan_bytes / 1e6:.1f}"
    build = "" if engine.build_s is None else f"{engine.build_s:.0f}"
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
