"""What TensorRT made of a network: the plans on this machine, and the layers of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metal_edge.bundle import MODEL, Bundle
from metal_edge.errors import UnavailableError
from metal_edge.runtime.cuda_memory import open_cuda
from metal_edge.runtime.plan_cache import PLAN, PlanManifest, check_plan, find_plans, read_plan
from metal_edge.runtime.plugin import load_plugin
from metal_edge.runtime.tensorrt_engine import created, import_tensorrt, last_error, make_logger
from metal_edge.runtime.tensorrt_load import key_of, machine_roots


def plans_of(bundle: Bundle, roots: Sequence[Path]) -> list[dict[str, Any]]:
    """This bundle's plans in the caches, whatever GPU they are for; nothing of TensorRT is needed.

    Returns:
        JSON data of each: its folder, key, size, `damaged` (what is wrong with the file, or
        None), and how it was built: `attention`, what was `asked`, and the `candidates` of `auto`
        with their medians, or why they are out.
    """
    return [
        {
            "folder": str(folder),
            **plan.key.model_dump(),
            "bytes": plan.size,
            "sha256": plan.sha256,
            "created_utc": plan.created_utc,
            "damaged": _damage(folder / PLAN, plan),
            **plan.build,
        }
        for folder, plan in find_plans(roots, bundle.manifest.files[MODEL].sha256)
    ]


def _damage(path: Path, plan: PlanManifest) -> str | None:
    try:
        check_plan(plan, plan.key, path.read_bytes(), path)
    except UnavailableError as error:
        return error.what
    except OSError as error:
        return f"cannot read {path} ({error.strerror})"
    return None


def layers_of(bundle: Bundle) -> str:
    """The layers of this bundle's plan on this machine, JSON as TensorRT words it.

    Raises:
        UnavailableError: TensorRT, the GPU or the plan is missing, or TensorRT refuses the plan.
    """
    trt, cuda = import_tensorrt(), open_cuda()
    try:
        plan = read_plan(machine_roots(), key_of(bundle, trt, cuda))
        with cuda.current():
            if plan.manifest.needs_plugin:
                load_plugin(trt)
            logger = make_logger(trt)
            runtime = created(logger, "a runtime", lambda: trt.Runtime(logger))
            engine = runtime.deserialize_cuda_engine(plan.content)
            if engine is None:
                raise UnavailableError(
                    f"TensorRT cannot load {plan.folder} ({last_error(logger)})",
                    "build the plan again with `metal-edge build-engine --backend tensorrt`",
                )
            inspector = engine.create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    finally:
        cuda.close()
