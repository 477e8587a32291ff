"""What nvcc and ptxas made of every kernel: registers, spills, shared memory, instructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metal_edge.export.masked_attention import Int8Scales, MaskedAttentionSpec
from tools.kernels import build
from tools.kernels.attention import (
    FOLDER,
    HostLibrary,
    UnsupportedError,
    head_dims_define,
    prepare,
)
from tools.kernels.evidence import sass
from tools.kernels.evidence.occupancy import LIMITS, Occupancy, Usage, occupancy

ARCHITECTURES = tuple(LIMITS)
KERNELS_SOURCE = FOLDER / "kernels.cu"


@dataclass(frozen=True, slots=True)
class Launch:
    """Threads and dynamic shared memory of a block; the most that the planner gives a kernel."""

    threads: int
    shared: int


@dataclass
class Kernel:
    """One kernel, by architecture.

    Attributes:
        instructions: of the machine code, by opcode; empty without a disassembler.
    """

    name: str
    launch: Launch
    resources: dict[str, build.Resources] = field(default_factory=dict)
    instructions: dict[str, Counter[str]] = field(default_factory=dict)

    def occupancy(self, architecture: str) -> Occupancy:
        """Blocks that an SM holds."""
        used = self.resources[architecture]
        usage = Usage(self.launch.threads, used.registers, used.shared + self.launch.shared)
        return occupancy(usage, LIMITS[architecture])


def attention_launches(library: HostLibrary) -> dict[str, Launch]:
    """How the planner launches each attention kernel, by name."""
    found: dict[str, Launch] = {}
    dims = (*library.head_dims, 256)
    for head_dim in dims:
        for kind in (np.float32, np.float16, np.int8):
            for keys in (64, 128, 192):
                spec = MaskedAttentionSpec.of_mask(
                    np.ones((keys, keys), bool),
                    1,
                    int8=Int8Scales(1, 1, 1, 1) if kind is np.int8 else None,
                )
                try:
                    call = prepare(library, [np.zeros((1, keys, 3 * head_dim), kind)], spec)
                except UnsupportedError:  # int8 beyond 128
                    continue
                plan = library.plan(call.problem)
                name = plan.kernel.decode()
                most = max(plan.shared_bytes, found[name].shared if name in found else 0)
                found[name] = Launch(plan.threads, most)
    return found


def compiled(
    launches: dict[str, Launch],
    source: Path,
    head_dims: Sequence[int] | None = None,
    architectures: Iterable[str] = ARCHITECTURES,
    disassembler: Path | None = None,
) -> list[Kernel]:
    """Compiles a source and looks into it.

    Args:
        launches: of the kernels that are wanted.
        source: with those kernels.
        head_dims: which to compile; for the attention kernels' source.
        architectures: as nvcc names them.
        disassembler: see `sass.disassembler`; None leaves the instructions out.

    Raises:
        MissingToolError: no nvcc.
        BuildError: it does not compile, for example because nvcc does not know an architecture.
        KeyError: a kernel that the planner launches is not in the source.
    """
    defines = None if head_dims is None else head_dims_define(head_dims)
    kernels = {name: Kernel(name, launch) for name, launch in launches.items()}
    for architecture in architectures:
        report = build.ptxas_report(source, architecture, defines)
        code = {}
        if disassembler is not None:
            code = sass.instructions(build.cubin(source, architecture, defines), disassembler)
        for name, kernel in kernels.items():
            kernel.resources[architecture] = report[name]
            if name in code:
                kernel.instructions[architecture] = code[name]
    return list(kernels.values())
