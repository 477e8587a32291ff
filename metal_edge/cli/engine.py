"""`metal-edge build-engine` for TensorRT: the plan for this machine, from a run or a bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from metal_edge.bundle import MANIFEST, Bundle
from metal_edge.cli.console import Advance, print_json, progress, say, say_result, stop_requested
from metal_edge.cli.destination import bundle_folder
from metal_edge.errors import ExitCode, SettingsError
from metal_edge.export.engine import check_attention, choose_backend
from metal_edge.export.tensorrt_attention import Attention
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions
from metal_edge.export.tensorrt_bundle import Plan, ensure_plan, rewrite_bundle
from metal_edge.runtime.load import GoldenResult

# What `build-engine` may be told about a bundle; everything else concerns a run.
_OF_A_BUNDLE = frozenset(
    {"--out", "--backend", "--attention", "--workspace", "--timing-cache", "--json"}
)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """--attention, --workspace (MiB) and --timing-cache."""

    attention: Attention = "auto"
    workspace_mib: int | None = None
    timing_cache: Path | None = None

    def check(self, backend: str) -> None:
        """Refuses what cannot be had; says what has no effect on `backend`."""
        check_attention(self.attention, backend)
        if backend != "tensorrt" and (self.workspace_mib or self.timing_cache):
            say("--workspace and --timing-cache concern TensorRT only: not used")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A bundle for this machine's back end."""

    bundle: Bundle
    golden: GoldenResult
    plan: Plan | None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"plan": None if self.plan is None else _plan_dict(self.plan)}

    def sentence(self) -> str:
        """What a person wants to know beyond the bundle."""
        golden = self.golden
        agreement = (
            f"  {golden.images} golden images pass on it: worst difference"
            f" {golden.worst_difference:.2g}, tolerance {golden.tolerance:.2g}"
        )
        if self.plan is None:
            return agreement
        manifest = self.plan.cached.manifest
        made = f"built in {manifest.build['seconds']} s" if self.plan.fresh else "was there"
        return (
            f"  plan for {manifest.key.machine}: {manifest.size / 1e6:.1f} MB, {made},"
            f" {self.plan.cached.folder}\n  attention: {_attention(manifest.build)}\n{agreement}"
        )


def is_bundle(path: Path) -> bool:
    """Tells a bundle from a run."""
    return (path / MANIFEST).is_file()


def run_rebuild(
    path: Path,
    out: Path,
    backend: str,
    given: Collection[str],
    options: PlanOptions,
    as_json: bool,
) -> None:
    """Bundle -> bundle (and plan) for this machine; needs none of the training packages.

    Args:
        path: a bundle.
        out: folder of the new one; may be the same.
        backend: auto, onnxruntime or tensorrt.
        given: the options that were written on the command line.
        options: see `PlanOptions`.
        as_json: whether the result is printed as JSON.
    """
    foreign = sorted(set(given) - _OF_A_BUNDLE)
    if foreign:
        raise SettingsError(
            f"{path} is a bundle, whose precision and threshold are fixed:"
            f" {', '.join(foreign)} would have no effect",
            "leave that out, or build from the run",
        )
    choice = choose_backend(backend)
    options.check(choice.backend)
    folder = bundle_folder(out)
    source = Bundle.open(path)
    say(f"{choice.reason}; precision {source.manifest.precision}, as in {path}")
    rebuilt = rebuild(source, folder, choice.backend, options)
    manifest = rebuilt.bundle.manifest
    if as_json:
        print_json(
            {
                "bundle": str(rebuilt.bundle.path),
                "sha256": rebuilt.bundle.digest,
                "precision": manifest.precision,
                "backend": manifest.backend,
                "golden_images": rebuilt.golden.images,
                **rebuilt.as_dict(),
            }
        )
    else:
        head = f"{rebuilt.bundle.path}: {manifest.precision} for {manifest.backend}"
        say_result(f"{head}\n{rebuilt.sentence()}")


def rebuild(source: Bundle, folder: Path, backend: str, options: PlanOptions) -> Rebuilt:
    """Builds the plan if `backend` needs one, then writes the bundle for it to `folder`."""
    if backend != "tensorrt":
        bundle, golden = rewrite_bundle(source, folder, "onnxruntime")
        return Rebuilt(bundle, golden, None)
    plan = _plan_with_progress(source, options)
    bundle, golden = rewrite_bundle(source, folder, "tensorrt", plan)
    return Rebuilt(bundle, golden, plan)


def _plan_with_progress(source: Bundle, options: PlanOptions) -> Plan:
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requested())
        bar = stack.enter_context(ExitStack())  # of one phase at a time
        advance: dict[str, Advance] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in advance:
                bar.close()
                advance.clear()
                advance[phase] = bar.enter_context(progress(phase))
            advance[phase](done, total, "")

        log = BuildLog(report, stop)
        build = BuildOptions(options.workspace_mib, options.timing_cache)
        try:
            return ensure_plan(
                source,
                build,
                log,
                say,
                lambda: datetime.now(UTC),
                attention=options.attention,
            )
        except KeyboardInterrupt as interrupt:
            bar.close()
            say("stopped; no plan and no bundle were written")
            raise typer.Exit(ExitCode.INTERRUPTED) from interrupt


def _attention(build: Mapping[str, Any]) -> str:
    """Which one the plan holds, and what the others would have taken."""
    asked = "as asked" if build["asked"] in {"native", "plugin"} else "chosen by auto"
    medians = ", ".join(
        f"{one['attention']} {one['median_ms']:.3g} ms"
        for one in build.get("candidates", ())
        if one["correct"]
    )
    return f"{build['attention']}, {asked}" + (
        f" (median of a frame: {medians})" if medians else ""
    )


def _plan_dict(plan: Plan) -> dict[str, Any]:
    manifest = plan.cached.manifest
    return {
        "folder": str(plan.cached.folder),
        "fresh": plan.fresh,
        "bytes": manifest.size,
        "sha256": manifest.sha256,
        **manifest.key.model_dump(),
        **manifest.build,
    }
