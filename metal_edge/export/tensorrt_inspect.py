"""What TensorRT made of a network: the layers of a built plan, as its own inspector lists them."""

from __future__ import annotations

from metal_edge.bundle import Bundle
from metal_edge.errors import UnavailableError
from metal_edge.runtime.cuda_memory import open_cuda
from metal_edge.runtime.plan_cache import read_plan
from metal_edge.runtime.plugin import load_plugin
from metal_edge.runtime.tensorrt_engine import import_tensorrt, last_error, make_logger
from metal_edge.runtime.tensorrt_load import key_of, machine_roots


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
            engine = trt.Runtime(logger).deserialize_cuda_engine(plan.content)
            if engine is None:
                raise UnavailableError(
                    f"TensorRT cannot load {plan.folder} ({last_error(logger)})",
                    "build the plan again with `metal-edge build-engine --backend tensorrt`",
                )
            inspector = engine.create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    finally:
        cuda.close()
