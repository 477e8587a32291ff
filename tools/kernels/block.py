"""The fused ZeroLeak block from Python: the struct of kernels/block/block_problem.h, and its runs.

`run_host` goes through the launcher into the emulation; `run_ptx` interprets what nvcc emitted.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metal_edge.export.masked_attention import Array, Fill, pack_mask
from metal_edge.export.masked_attention_block import INPUTS, MaskedAttentionBlockSpec
from tools.kernels import build
from tools.ptx import Device, Module, Report
from tools.ptx import launch as interpret

KERNEL = "masked_attention_block"
FOLDER = build.KERNELS / "block"
KERNEL_SOURCE = FOLDER / "block_launch.cu"
SOURCES = (KERNEL_SOURCE, FOLDER / "block_plan.cpp", FOLDER / "block_api.cpp")
SENTINEL = 0x7E5A  # a NaN that no kernel makes: what nobody wrote

_INTEGERS = ("fill", "batch", "heads", "head_dim", "queries", "keys", "mask_heads", "columns")
_POINTERS = (*INPUTS, "out", "mask", "slopes", "workspace", "arrivals")


class Problem(ctypes.Structure):
    """BlockProblem."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in _INTEGERS),
        ("scale", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("query_shared", ctypes.c_int32),
        ("residual_shared", ctypes.c_int32),
    )


class Buffers(ctypes.Structure):
    """BlockBuffers."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in _POINTERS)


class Plan(ctypes.Structure):
    """Plan."""

    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_int32 * 3),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """One call of the operator.

    Attributes:
        tensors: float16 by name, see `masked_attention_block.reference`.
        spec: the attributes.
    """

    tensors: dict[str, NDArray[np.float16]]
    spec: MaskedAttentionBlockSpec

    @property
    def problem(self) -> Problem:
        """What the launcher is told of it."""
        (batch, keys, width), attention = self.tensors["content"].shape, self.spec.attention
        head_dim = width // attention.heads
        return Problem(
            fill=int(attention.fill is Fill.ZERO),
            batch=batch,
            heads=attention.heads,
            head_dim=head_dim,
            queries=self.tensors["query"].shape[1],
            keys=keys,
            mask_heads=attention.mask_shape[0],
            columns=attention.columns,
            scale=head_dim**-0.5 if attention.scale is None else attention.scale,
            epsilon=self.spec.epsilon,
            query_shared=int(self.tensors["query"].shape[0] == 1),
            residual_shared=int(self.tensors["residual"].shape[0] == 1),
        )

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(B, N, W)."""
        batch, _, width = self.tensors["content"].shape
        return batch, self.tensors["query"].shape[1], width


class Block:
    """The C functions of kernels/block/block_api.cpp.

    Args:
        library: a build that contains them and the emulation.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.block_workspace_bytes.restype = ctypes.c_uint64
        library.block_arguments.restype = ctypes.c_uint64
        library.block_plan.restype = Plan
        library.simt_last_error.restype = ctypes.c_char_p

    def refusal(self, problem: Problem) -> str:
        """Why no kernel takes it; empty if one does."""
        text = ctypes.create_string_buffer(256)
        taken = self._library.block_supported(ctypes.byref(problem), text, len(text))
        return "" if taken else text.value.decode()

    def plan(self, problem: Problem) -> Plan:
        """Kernel, grid, threads and bytes of shared memory of a supported problem."""
        plan: Plan = self._library.block_plan(ctypes.byref(problem))
        return plan

    def memory(self, case: Case) -> dict[str, Array]:
        """All buffers of a launch by name; inputs are copies.

        Output and workspace hold what would be seen if it were read before it is written.
        """
        problem, attention = case.problem, case.spec.attention
        workspace = self._library.block_workspace_bytes(ctypes.byref(problem))
        arrivals = self._library.block_arrival_count(ctypes.byref(problem))
        arrays: dict[str, Array] = {name: case.tensors[name].copy() for name in INPUTS}
        arrays["out"] = np.full(case.out_shape, SENTINEL, np.uint16).view(np.float16)
        arrays["mask"] = pack_mask(attention.allowed)
        if attention.slopes:
            arrays["slopes"] = np.array(attention.slopes, np.float32)
        arrays["workspace"] = np.full(workspace // 4, np.nan, np.float32)
        arrays["arrivals"] = np.zeros(arrivals, np.int32)
        return {name: _aligned(array) for name, array in arrays.items()}

    def launch(self, problem: Problem, arrays: dict[str, Array]) -> int:
        """Runs the kernel in the emulation; 0 or a cudaError_t."""
        buffers = Buffers(**{name: array.ctypes.data for name, array in arrays.items()})
        return int(self._library.block_launch(ctypes.byref(problem), ctypes.byref(buffers), None))

    def arguments(self, problem: Problem, addresses: dict[str, int]) -> bytes:
        """The bytes of the kernel's one parameter, for buffers at these addresses."""
        buffers = Buffers(**addresses)
        size = self._library.block_arguments(ctypes.byref(problem), ctypes.byref(buffers), None)
        into = ctypes.create_string_buffer(size)
        self._library.block_arguments(ctypes.byref(problem), ctypes.byref(buffers), into)
        return into.raw

    def run_host(self, case: Case, seed: int = 0) -> NDArray[np.float16]:
        """The operator through launcher and emulation.

        Args:
            case: what to compute.
            seed: the order of blocks, warps and lanes; 0 is ascending.

        Raises:
            RuntimeError: refused, or a fault that the emulation saw.
        """
        if reason := self.refusal(case.problem):
            raise RuntimeError(reason)
        arrays = self.memory(case)
        self._library.simt_set_schedule(ctypes.c_uint32(seed))
        if code := self.launch(case.problem, arrays):
            raise RuntimeError(f"error {code}: {self._library.simt_last_error().decode()}")
        if arrays["arrivals"].any():
            raise RuntimeError(f"the launch left arrivals {arrays['arrivals'].tolist()}")
        return arrays["out"]

    def run_ptx(
        self, module: Module, case: Case, seed: int | None = None
    ) -> tuple[NDArray[np.float16], Report]:
        """The operator by interpretation of PTX; planner and arguments are the library's.

        Args:
            module: of KERNEL_SOURCE.
            case: what to compute.
            seed: the order of blocks and warps; None is lockstep.

        Raises:
            ViolationError: the kernel broke a rule of the programming model.
        """
        device, arrays, plan = Device(), self.memory(case), self.plan(case.problem)
        addresses = {name: device.upload(array, name) for name, array in arrays.items()}
        report = interpret(
            module,
            plan.kernel.decode(),
            list(plan.grid),
            plan.threads,
            [self.arguments(case.problem, addresses)],
            shared_bytes=plan.shared_bytes,
            seed=seed,
            device=device,
        )
        if (left := device.download(addresses["arrivals"], arrays["arrivals"])).any():
            raise RuntimeError(f"the launch left arrivals {left.tolist()}")
        return device.download(addresses["out"], arrays["out"]), report


def _aligned(array: Array) -> Array:
    """A copy at a multiple of 16 bytes, as device memory has it."""
    raw = np.empty(array.nbytes + 16, np.uint8)
    start = -raw.ctypes.data % 16
    copy: Any = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy  # type: ignore[no-any-return]
