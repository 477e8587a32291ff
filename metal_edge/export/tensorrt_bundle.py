"""The same model for another back end: TensorRT's plan from a bundle, and the bundle that asks
for it.

The bundle stays portable. It holds the ONNX file, threshold and golden images; the plan lies in
the machine's cache (`runtime.plan_cache`), where a daemon finds it or refuses to start. A bundle
is only written when its golden images, whose scores ONNX Runtime gave, pass on what was built.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from metal_edge.bundle import Bundle, write_manifest
from metal_edge.errors import BundleError, MetalEdgeError, OutputError, UnavailableError
from metal_edge.export.tensorrt_attention import Attention, Chooser
from metal_edge.export.tensorrt_builder import BuildLog, BuildOptions
from metal_edge.export.tensorrt_children import run_job
from metal_edge.files import remove_leftovers, write_folder, write_text
from metal_edge.runtime.cuda_memory import open_cuda
from metal_edge.runtime.load import GoldenResult, check_golden, load_runner
from metal_edge.runtime.plan_cache import (
    ROOT_VARIABLE,
    CachedPlan,
    PlanKey,
    describe_plan,
    discard_plan,
    read_plan,
    timing_cache_path,
    write_plan,
)
from metal_edge.runtime.tensorrt_engine import import_tensorrt
from metal_edge.runtime.tensorrt_load import key_of, machine_roots

Backend = Literal["onnxruntime", "tensorrt"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a bundle on this machine. `fresh` if it was built just now."""

    cached: CachedPlan
    fresh: bool


def ensure_plan(
    bundle: Bundle,
    options: BuildOptions,
    log: BuildLog,
    say: Callable[[str], None],
    clock: Callable[[], datetime],
    *,
    attention: Attention = "auto",
) -> Plan:
    """The plan of this bundle for this GPU and TensorRT version, built unless it is there intact.

    Args:
        bundle: a verified bundle.
        options, log: see `build_plan`.
        say: told what is done, and why.
        clock: of the day.
        attention: what was asked for; a plan that was built for another wish, or with another
            workspace than `options` names, is built anew.

    Raises:
        UnavailableError: TensorRT, the GPU or a plugin that was asked for cannot be used, or
            TensorRT cannot build it.
        DataError: TensorRT cannot parse the bundle's ONNX file.
        OutputError: the cache cannot be written.
    """
    trt, roots = import_tensorrt(), machine_roots()
    with ExitStack() as stack:
        cuda = open_cuda()
        stack.callback(cuda.close)
        key = key_of(bundle, trt, cuda)
        remove_leftovers(roots[0] / key.folder)
        try:
            plan = read_plan(roots, key)
        except UnavailableError as error:
            reason = error.what
        else:
            other = _other_wish(plan, attention, options)
            if other is None:
                return Plan(plan, fresh=False)
            reason = f"{plan.folder} was built with {other}"
        file = options.timing_cache or timing_cache_path(roots[0], key)
        _check_writable(roots[0], "plans", f"choose another place with {ROOT_VARIABLE}")
        _check_writable(file.parent, "the timing cache", "choose another one with --timing-cache")
        say(f"{reason}: building it, which can take minutes ...")
        stack.enter_context(cuda.current())
        options = replace(options, timing_cache=file)
        chooser = Chooser(trt, bundle, options, log, say, run_job)
        _build(chooser, key, roots[0], attention=attention, clock=clock)
        return Plan(read_plan(roots, key), fresh=True)


def _other_wish(plan: CachedPlan, attention: Attention, options: BuildOptions) -> str | None:
    """How a plan was built otherwise than is asked for now; None if it was built so.

    A workspace that nobody names now may be any.
    """
    build, workspace = plan.manifest.build, options.workspace_mib
    if build.get("asked") != attention:
        return f"--attention {build.get('asked')}, not {attention}"
    if workspace not in {None, build.get("workspace_mib")}:
        before = build.get("workspace_mib")
        return f"{f'--workspace {before}' if before else 'all the workspace'}, not {workspace}"
    return None


def _check_writable(folder: Path, what: str, remedy: str) -> None:
    """Asked before minutes of building."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write {what} into {folder} ({error.strerror})",
            f"free space there, or {remedy}",
        ) from error


def _build(
    chooser: Chooser,
    key: PlanKey,
    root: Path,
    *,
    attention: Attention,
    clock: Callable[[], datetime],
) -> None:
    failed = root / f"{key.folder}.failed.log"
    began = clock()
    try:
        chosen = chooser.build(attention)
    except MetalEdgeError as error:
        where = f"all its words: {failed}"
        try:
            write_text(failed, chooser.log.text)
        except OutputError as full:  # often the same reason, and never the one that matters
            where = f"its log is lost: {full.what}"
        raise type(error)(error.what, f"{error.remedy}; {where}") from error
    ended = clock()
    build = {
        "precision": chooser.bundle.manifest.precision,
        "asked": attention,
        **chosen.notes,
        "workspace_mib": chooser.options.workspace_mib,
        "seconds": round((ended - began).total_seconds(), 1),
    }
    manifest = describe_plan(key, chosen.content, ended.isoformat(timespec="seconds"), build)
    write_plan(root, manifest, chosen.content, chooser.log.text)
    failed.unlink(missing_ok=True)


def rewrite_bundle(
    source: Bundle, destination: Path, backend: Backend, plan: Plan | None = None
) -> tuple[Bundle, GoldenResult]:
    """Writes `source` again, for `backend`; nothing else of it changes.

    Args:
        source: a verified bundle; may lie at `destination`.
        destination: folder to write.
        backend: what shall run it. For TensorRT, `ensure_plan` comes first.
        plan: what `ensure_plan` gave; thrown away if the golden images fail on it.

    Raises:
        BundleError: the golden images fail on this back end; `destination` stays as it was.
        OutputError: the place cannot be written; likewise.
    """
    results: list[GoldenResult] = []

    def fill(folder: Path) -> None:
        for name in source.manifest.files:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source.path / name, folder / name)
        write_manifest(folder, source.manifest.model_copy(update={"backend": backend}))
        written = Bundle.open(folder)
        with load_runner(written) as runner:
            results.append(check_golden(written, runner))

    remove_leftovers(destination)
    try:
        write_folder(destination, fill)
    except BundleError:
        if plan is not None:
            discard_plan(plan.cached.folder)
        raise
    return Bundle.open(destination), results[0]
