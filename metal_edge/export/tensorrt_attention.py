"""Whose attention a plan holds: TensorRT's own fusion, or our plugin's.

Which is faster depends on the device, the model and TensorRT's version, so it is measured there:
every variant is built, must give the golden images' scores, and is timed in turn with the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from metal_edge.bundle import Bundle
from metal_edge.errors import MetalEdgeError, UnavailableError
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions, build_plan
from metal_edge.runtime.base import Runner
from metal_edge.runtime.cuda_memory import open_cuda
from metal_edge.runtime.load import check_golden, read_golden_image
from metal_edge.runtime.plan_cache import NATIVE
from metal_edge.runtime.plugin import load_plugin
from metal_edge.runtime.tensorrt_engine import TensorRtEngine
from metal_edge.runtime.tensorrt_runner import TensorRtRunner
from metal_edge.runtime.timing import take_turns

Attention = Literal["auto", "plugin", "native"]
PLUGIN = "plugin"
TURNS = 200


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


@dataclass(frozen=True, slots=True)
class Chooser:
    """Builds plans of one bundle and keeps the best.

    Attributes:
        trt: the tensorrt package.
        bundle: its graph has native attention; its golden images decide what is correct.
        options, log: see `build_plan`.
        say: told in one line what is not used, and why.
        seconds: a clock.
    """

    trt: Any
    bundle: Bundle
    options: BuildOptions
    log: BuildLog
    say: Callable[[str], None]
    seconds: Callable[[], float] = time.perf_counter

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
            return self._best(variants)

    def _only(self, variant: Variant, notes: Mapping[str, Any] | None = None) -> Chosen:
        """Its golden images are checked when the bundle is written."""
        return Chosen(self._plan(variant), {"attention": variant.name, **(notes or {})})

    def _plan(self, variant: Variant) -> bytes:
        self.log.note("INFO", f"attention: {variant.name}")
        return build_plan(self.trt, variant.model, self.options, self.log)

    def _best(self, variants: list[Variant]) -> Chosen:
        plans: dict[str, bytes] = {}
        failures: dict[str, MetalEdgeError] = {}
        with ExitStack() as stack:
            runners: dict[str, Runner] = {}
            for variant in variants:
                try:
                    plans[variant.name] = self._plan(variant)
                    runner = stack.enter_context(self._runner(variant, plans[variant.name]))
                    check_golden(self.bundle, runner)
                except MetalEdgeError as error:
                    failures[variant.name] = error
                    self.say(f"attention {variant.name} is out: {error.what}")
                else:
                    runners[variant.name] = runner
            if not runners:
                raise failures[variants[0].name]
            medians = self._medians(runners) if len(runners) > 1 else {}
        best = min(runners, key=lambda name: medians.get(name, 0.0))
        notes = next(variant.notes for variant in variants if variant.name == best)
        return Chosen(
            plans[best],
            {
                "attention": best,
                "medians_ms": {name: round(ms, 4) for name, ms in medians.items()},
                "out": {name: error.what for name, error in failures.items()},
                **notes,
            },
        )

    def _runner(self, variant: Variant, plan: bytes) -> TensorRtRunner:
        what = f"the plan with attention {variant.name}"
        with ExitStack() as undo:
            cuda = open_cuda()
            undo.callback(cuda.close)
            with cuda.current():
                engine = TensorRtEngine(self.trt, plan, what)
            undo.pop_all()  # from here on the runner closes both
        return TensorRtRunner(engine, cuda, what)

    def _medians(self, runners: Mapping[str, Runner]) -> dict[str, float]:
        """Milliseconds per frame, copies included, of runners that take turns."""
        frame = read_golden_image(self.bundle, self.bundle.golden.images[0].file)[None]
        calls = [partial(runner.run, frame) for runner in runners.values()]
        self.say(f"timing {', '.join(runners)}: {TURNS} frames each, in turn ...")
        times = take_turns(calls, TURNS, self.seconds)
        return dict(zip(runners, np.median(times, axis=0).tolist(), strict=True))


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
