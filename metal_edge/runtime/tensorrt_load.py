"""From a bundle to a running TensorRT plan: finds it, checks it, never builds it.

Building takes minutes. A daemon that did so would stand in front of a running line without
saying so; `metal-edge build-engine --backend tensorrt` builds, beforehand, on the same machine.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from metal_edge.bundle import MODEL, Bundle
from metal_edge.errors import UnavailableError
from metal_edge.runtime.cuda_memory import Cuda, missing_cuda_package, open_cuda
from metal_edge.runtime.plan_cache import NATIVE, PlanKey, plan_roots, read_plan
from metal_edge.runtime.plugin import find_plugin, load_plugin
from metal_edge.runtime.tensorrt_engine import TensorRtEngine, import_tensorrt
from metal_edge.runtime.tensorrt_runner import TensorRtRunner

_GPU_NODES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu/igpu0/channel")


def missing_gpu() -> str | None:
    """Words for a machine without an NVIDIA GPU; None if there is one."""
    there = any(Path(node).exists() for node in _GPU_NODES)
    return None if there else "no NVIDIA GPU found"


def missing_for_tensorrt() -> str | None:
    """What keeps this machine from using TensorRT, in a few words; None if nothing does."""
    missing = missing_gpu()
    if missing is not None:
        return missing
    if importlib.util.find_spec("tensorrt") is None:
        return "the tensorrt Python package is not installed"
    return missing_cuda_package()


def machine_roots() -> tuple[Path, ...]:
    """`plan_roots` of this process."""
    return plan_roots(os.environ, Path.home(), os.geteuid() == 0)


def key_of(bundle: Bundle, trt: Any, cuda: Cuda) -> PlanKey:
    """The key of the plan that this bundle needs on this machine.

    Raises:
        UnavailableError: METAL_EDGE_PLUGIN names what is not there.
    """
    plugin = find_plugin()
    return PlanKey(
        onnx_sha256=bundle.manifest.files[MODEL].sha256,
        tensorrt=str(trt.__version__),
        gpu=cuda.gpu,
        compute_capability=cuda.compute_capability,
        plugin_sha256=None if plugin is None else plugin.sha256,
    )


def load_tensorrt_runner(bundle: Bundle) -> TensorRtRunner:
    """The bundle's plan for this GPU and TensorRT version, ready to run.

    Raises:
        UnavailableError: TensorRT, the GPU, the plan or a plugin that it needs is missing, or
            the plan is damaged, or was built with another plugin.
        BundleError: the plan's inputs and outputs are not ours.
    """
    missing = missing_for_tensorrt()
    if missing is not None:
        raise UnavailableError(
            f"{bundle.path} is built for TensorRT, which cannot run here: {missing}",
            "build it with `metal-edge build-engine --backend onnxruntime`",
        )
    trt, roots = import_tensorrt(), machine_roots()
    with ExitStack() as undo:
        cuda = open_cuda()
        undo.callback(cuda.close)
        plan = read_plan(roots, key_of(bundle, trt, cuda))
        with cuda.current():
            if plan.manifest.needs_plugin:
                load_plugin(trt)
            engine = TensorRtEngine(trt, plan.content, str(plan.folder))
        undo.pop_all()  # from here on the runner closes both
    attention = str(plan.manifest.build.get("attention", NATIVE))
    return TensorRtRunner(engine, cuda, str(plan.folder), attention)
