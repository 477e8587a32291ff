"""The evidence as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.kernels.evidence.compiled import ARCHITECTURES, Kernel
from tools.kernels.evidence.measure import Traffic
from tools.kernels.evidence.occupancy import LIMITS
from tools.kernels.evidence.roofline import GPUS, Floor, Gpu, Work, floor
from tools.kernels.evidence.sass import family

_TENSOR = {"HMMA": "HMMA", "IMMA": "IMMA", "LDSM": "ldmatrix (LDSM)", "LDGSTS": "cp.async (LDGSTS)"}


@dataclass(frozen=True, slots=True)
class Measured:
    """One problem in one precision: what it needs at least, and what its kernel did.

    Attributes:
        needed, tiles: pairs of query and key tiles that the mask leaves, and all; per head.
    """

    name: str
    shape: str
    precision: str
    work: Work
    traffic: Traffic
    needed: int
    tiles: int


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def kernels_table(kernels: Sequence[Kernel]) -> str:
    """Registers to occupancy; where architectures differ, their figures in order."""
    head = ["kernel", "registers", "stack, B", "spills, B", "threads", "shared, B"]
    head += ["blocks per SM", "occupancy, %", "bound by", "instructions", *_TENSOR.values()]
    return table(head, [_kernel_row(kernel) for kernel in kernels])


def _kernel_row(kernel: Kernel) -> list[str]:
    def each(figure: Callable[[str], object]) -> str:
        figures = [str(figure(architecture)) for architecture in kernel.resources]
        return figures[0] if len(set(figures)) == 1 else " / ".join(figures)

    def counted(*names: str) -> str:
        code = kernel.instructions
        return each(lambda a: family(code[a], *names)) if code else "-"

    used, code = kernel.resources, kernel.instructions
    return [
        f"`{kernel.name}`",
        each(lambda a: used[a].registers),
        each(lambda a: used[a].stack),
        each(lambda a: used[a].spill_stores + used[a].spill_loads),
        str(kernel.launch.threads),
        each(lambda a: used[a].shared + kernel.launch.shared),
        each(lambda a: kernel.occupancy(a).blocks),
        each(lambda a: round(100 * kernel.occupancy(a).share)),
        each(lambda a: kernel.occupancy(a).bound_by),
        each(lambda a: sum(code[a].values())) if code else "-",
        *(counted(name) for name in _TENSOR),
    ]


def traffic_table(measured: Sequence[Measured]) -> str:
    """What the kernels did to memory on whole problems."""
    head = [
        "problem",
        "tensors",
        "kernel",
        "blocks",
        "read, KB",
        "at least",
        "written, KB",
        "at least",
    ]
    head += ["coalescing", "bank conflicts", "tiles read", "tensor-core instructions"]
    return table(head, [_traffic_row(each) for each in measured])


def _traffic_row(each: Measured) -> list[str]:
    done, least = each.traffic, each.work
    return [
        each.name,
        f"{each.precision}, {each.shape}",
        f"`{done.kernel.removeprefix('masked_attention_')}`",
        str(done.blocks),
        *(f"{count / 1e3:.1f}" for count in (done.read, least.read, done.written, least.written)),
        f"{done.coalescing:.2f}",
        f"{done.conflicts} of {done.passes}" if done.passes else "no shared memory",
        f"{each.needed} of {each.tiles}" if "flash" in done.kernel else "all",
        str(done.products),
    ]


def floors_table(measured: Sequence[Measured], gpus: Sequence[Gpu] = GPUS) -> str:
    """Microseconds that no kernel can go below, and what sets them."""
    head = ["problem", "precision", *(gpu.module.name for gpu in gpus)]
    rows = [
        [each.name, each.precision, *(_floor_cell(floor(each.work, gpu)) for gpu in gpus)]
        for each in measured
    ]
    return table(head, rows)


def _floor_cell(found: Floor) -> str:
    return f"{found.total:.2f} {found.bound_by}"


def sources() -> str:
    """Where the boards' figures stand."""
    lines = [
        f"* {g.module.name}: {g.architecture}, {g.multiprocessors} SMs, {g.clock:g} GHz,"
        f" {2 * g.peak_macs('fp16') / 1e12:.1f} dense FP16 TFLOPS,"
        f" {2 * g.peak_macs('int8') / 1e12:.1f} dense INT8 TOPS: {g.source}. Memory:"
        f" {g.module.source}."
        for g in GPUS
    ]
    return "\n".join(lines)


def limits() -> str:
    """What occupancy is counted with."""
    parts = [
        f"{name}: {limit.warps} warps, {limit.blocks} blocks, {limit.shared // 1024} KiB of shared"
        " memory per SM"
        for name, limit in LIMITS.items()
        if name in ARCHITECTURES
    ]
    return "; ".join(parts)
