"""Whose attention a plan holds: TensorRT's own fusion, or our plugin's.

Which is faster depends on the device, the model and TensorRT's version, so it is measured there:
every variant is built, must give the golden images' scores, and is timed in turn with the others,
each in processes of its own: what crashes, hangs or poisons its CUDA context is out, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from metal_edge.bundle import Bundle
from metal_edge.errors import MetalEdgeError, UnavailableError
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions, build_plan
from metal_edge.export.tensorrt_children import run_job
from metal_edge.export.tensorrt_trial import Job
from metal_edge.runtime.plan_cache import NATIVE
from metal_edge.runtime.plugin import load_plugin

Attention = Literal["auto", "plugin", "native"]
Launch = Callable[[Job, BuildLog], dict[str, Any]]
PLUGIN, PLUGIN_INT8 = "plugin", "plugin int8"
INT8_EVIDENCE = "plugin_int8"  # where the manifest's notes on precision say that it was checked
_FROM_RUN = "build the bundle from its run, with --attention auto or plugin"
# Timed frames of a candidate: two processes, the second in the opposite order.
ROUNDS, FRAMES = 2, 100


@dataclass(frozen=True, slots=True)
class Variant:
    """A graph to build a plan from.

    Attributes:
        name: "native", or what the plugin does: "plugin", "plugin int8" or "plugin block".
        model: its ONNX file.
        notes: what the surgery did, for the plan's manifest.
    """

    name: str
    model: Path
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plan, and what its manifest says of its attention."""

    content: bytes
    notes: dict[str, Any]


@dataclass(slots=True)
class Candidate:
    """A variant on its way: its plan, what its processes found, or why it is out."""

    variant: Variant
    plan: Path
    failure: MetalEdgeError | None = None
    found: dict[str, Any] = field(default_factory=dict)
    times_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Of a frame, copies included."""
        return float(np.median(self.times_ms))

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        name = self.variant.name
        if self.failure is not None:
            return {"attention": name, "correct": False, "why": self.failure.what}
        return {
            "attention": name,
            "correct": True,
            "median_ms": round(self.median_ms, 4),
            "frames": len(self.times_ms),
            **self.found,
        }


@dataclass(frozen=True, slots=True)
class Chooser:
    """Builds plans of one bundle and keeps the best.

    Attributes:
        trt: the tensorrt package.
        bundle: its graph has native attention; its golden images decide what is correct.
        options, log: see `build_plan`.
        say: told in one line what is not used, and why.
        launch: does a job in a process of its own.
    """

    trt: Any
    bundle: Bundle
    options: BuildOptions
    log: BuildLog
    say: Callable[[str], None]
    launch: Launch = run_job

    def build(self, wanted: Attention) -> Chosen:
        """The plan with the attention that was asked for; `auto` takes the fastest correct one.

        Raises:
            UnavailableError, DataError: TensorRT cannot build it, or the plugin was asked for and
                cannot be used.
            BundleError: nothing that was asked for gives the golden images' scores.
        """
        native = Variant(NATIVE, self.bundle.model_path)
        if wanted == NATIVE:
            return self._only(native)
        with TemporaryDirectory(prefix="metal-edge-") as folder:
            try:
                variants = plugin_variants(self.trt, native.model, Path(folder))
            except MetalEdgeError as error:
                if wanted == PLUGIN:
                    raise
                self.say(f"TensorRT's own attention, without the plugin: {error.what}")
                return self._only(native, {"without_plugin": error.what})
            if wanted == "auto":
                variants = [native, *variants]
            return self._best(variants, Path(folder))

    def _only(self, variant: Variant, notes: Mapping[str, Any] | None = None) -> Chosen:
        """Its golden images are checked when the bundle is written."""
        self._announce(variant)
        content = build_plan(self.trt, variant.model, self.options, self.log)
        return Chosen(content, {"attention": variant.name, **(notes or {})})

    def _announce(self, variant: Variant) -> None:
        self.log.note("INFO", f"attention: {variant.name}")

    def _best(self, variants: list[Variant], folder: Path) -> Chosen:
        """Every step of every candidate has a process of its own, which may die of it."""
        candidates = [Candidate(v, folder / f"{n}.plan") for n, v in enumerate(variants)]
        for candidate in candidates:
            self._announce(candidate.variant)
            unproven = why_no_int8(self.bundle) if candidate.variant.name == PLUGIN_INT8 else None
            if unproven is not None:
                self._put_out(candidate, UnavailableError(unproven, _FROM_RUN))
            else:
                self._step(candidate, "build")
        self._compare(candidates)
        failures = [c.failure for c in candidates if c.failure is not None]
        if len(failures) == len(candidates):
            raise failures[0]
        best = min((c for c in candidates if c.failure is None), key=lambda c: c.median_ms)
        notes = {
            "attention": best.variant.name,
            "candidates": [candidate.as_dict() for candidate in candidates],
            **best.variant.notes,
        }
        return Chosen(best.plan.read_bytes(), notes)

    def _compare(self, candidates: Sequence[Candidate]) -> None:
        """Golden images and times, there and back again, so that a drift meets all alike."""
        for turn in range(ROUNDS):
            left = [c for c in candidates if c.failure is None]
            if turn and len(left) < 2:  # nothing to compare any more
                return
            names = ", ".join(c.variant.name for c in left)
            if left and not turn:
                self.say(f"timing {names}: {ROUNDS} times {FRAMES} frames each, in turn ...")
            for candidate in left if turn % 2 == 0 else reversed(left):
                self._step(candidate, "prove")

    def _step(self, candidate: Candidate, step: Literal["build", "prove"]) -> None:
        variant = candidate.variant
        job = Job(
            step=step,
            name=variant.name,
            plugin=variant.name != NATIVE,
            model=variant.model,
            plan=candidate.plan,
            bundle=self.bundle.path,
            workspace_mib=self.options.workspace_mib,
            timing_cache=self.options.timing_cache,
            frames=FRAMES,
        )
        try:
            found = self.launch(job, self.log)
        except MetalEdgeError as error:
            self._put_out(candidate, error)
            return
        if step == "prove":
            candidate.times_ms += found.pop("ms")
            candidate.found = found

    def _put_out(self, candidate: Candidate, error: MetalEdgeError) -> None:
        candidate.failure = error
        words = f"attention {candidate.variant.name} is out: {error.what}"
        self.log.note("ERROR", words)
        self.say(words)


def why_no_int8(bundle: Bundle) -> str | None:
    """Why a plan of this bundle may not have the plugin's INT8 attention; None if it may.

    `plugin_parity` has judged its numbers when the bundle was built from the run; a device only
    checks golden images.
    """
    precision = bundle.manifest.provenance.get("precision")
    found = precision.get(INT8_EVIDENCE) if isinstance(precision, Mapping) else None
    if not isinstance(found, Mapping):
        return "its parity with fp32 was not checked when the bundle was built"
    refused = found.get("refused", "its parity with fp32 is not in the bundle")
    return None if refused is None else str(refused)


def plugin_variants(trt: Any, model: Path, folder: Path) -> list[Variant]:
    """Writes the graphs that the plugin could run in place of one.

    Args:
        trt: the tensorrt package, whose registry the plugin is loaded into.
        model: ONNX file with native attention.
        folder: where the new ones go.

    Raises:
        UnavailableError: no plugin, or none that fits; no onnx; or no attention of ours.
    """
    load_plugin(trt)
    try:
        import onnx

        from metal_edge.export.attention_variants import plugin_graphs
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"onnx", "google"}:
            raise
        raise UnavailableError(
            "putting the plugin into a graph needs the Python package onnx",
            "pip install onnx, or build with --attention native",
        ) from error
    try:
        graphs, refused = plugin_graphs(onnx.load(model))
    except Exception as error:  # onnx raises many kinds on an odd graph, and native is still left
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnavailableError(
            f"the plugin cannot be put into {model} ({reason})",
            "build with --attention auto or native, and report this with the bundle",
        ) from error
    if not graphs:
        raise UnavailableError(
            f"no attention of {model} is the plugin's ({'; '.join(refused) or 'it has none'})",
            "build with --attention auto or native",
        )
    found = []
    for index, graph in enumerate(graphs):
        path = folder / f"{index}.onnx"
        onnx.save(graph.model, path)
        found.append(Variant(graph.name, path, graph.notes))
    return found
