"""Runs the masked-attention kernels on NumPy arrays: in the emulation, or as PTX, interpreted.

`tools/kernels/gpu.py` runs them on a GPU.

Both go through the library's own checks, plan and argument block, as the plugin does. A problem is
what an ONNX node would be: its input tensors and a `MaskedAttentionSpec`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metal_edge.export.masked_attention import Fill, MaskedAttentionSpec, pack_mask
from tools.kernels import build
from tools.ptx import Device, Module, Report
from tools.ptx import launch as interpret

Array = NDArray[Any]

FOLDER = build.KERNELS / "attention"
SOURCES = ("kernels.cu", "launch.cu", "planner.cpp", "host_api.cpp")
ALL_HEAD_DIMS = tuple(range(16, 129, 16))

_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int8): 2}
_FILLS = {Fill.EXCLUDE: 0, Fill.ZERO: 1}
_TEXT_SIZE = 256
# What memory holds before a kernel writes it.
UNWRITTEN = {np.dtype(np.float32): np.nan, np.dtype(np.float16): np.nan, np.dtype(np.int8): 99}


class Problem(ctypes.Structure):
    """`metal_edge::Problem` of kernels/attention/problem.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "type", "fill", "batch", "heads", "head_dim", "queries", "keys", "mask_heads",
            "columns",
        )),
        *((name, ctypes.c_float) for name in (
            "scale", "q_scale", "k_scale", "v_scale", "out_scale",
        )),
        *((name, ctypes.c_int64) for name in (
            "q_batch", "q_row", "k_batch", "k_row", "v_batch", "v_row", "out_batch", "out_row",
        )),
    ]  # fmt: skip


class Buffers(ctypes.Structure):
    """`metal_edge::Buffers` of kernels/attention/problem.h."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "mask", "tiles", "slopes")
    ]


class Plan(ctypes.Structure):
    """`metal_edge::Plan` of kernels/attention/problem.h."""

    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_int32 * 3),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
    ]


class UnsupportedError(ValueError):
    """The library refuses a problem; says why."""


class LaunchError(RuntimeError):
    """A launch failed, or the emulation found a fault in the kernel; says which."""


@dataclass(frozen=True)
class Call:
    """One launch: the structs for the library, and the arrays that they point into."""

    problem: Problem
    buffers: Buffers
    tensors: tuple[Array, ...]  # with their slack
    places: tuple[tuple[int, int], ...]  # of query, key and value: which tensor, bytes into it
    mask: NDArray[np.uint32]
    tiles: NDArray[np.uint32]
    slopes: NDArray[np.float32]
    room: Array  # the output with its slack
    out: Array  # [B, N, W], the view of it


def head_dims_define(head_dims: Sequence[int]) -> dict[str, str]:
    """The macro that compiles the tensor-core kernels for these head dims only."""
    return {"METAL_EDGE_HEAD_DIMS(X)": " ".join(f"X({each})" for each in sorted(head_dims))}


class HostLibrary:
    """The kernels, planner and launcher, compiled by g++.

    Args:
        head_dims: which to compile; fewer build sooner.
        sanitizer: see `build.host_library`.
        folder: where the sources lie; tests pass altered copies.
        quick: see `build.host_library`.
    """

    def __init__(
        self,
        head_dims: Sequence[int] = ALL_HEAD_DIMS,
        sanitizer: build.Sanitizer | None = None,
        folder: Path = FOLDER,
        *,
        quick: bool = False,
    ) -> None:
        path = build.host_library(
            [folder / name for name in SOURCES],
            defines=head_dims_define(head_dims),
            sanitizer=sanitizer,
            quick=quick,
        )
        self._bind(path, head_dims)

    def _bind(self, path: Path, head_dims: Sequence[int]) -> None:
        self.head_dims = tuple(head_dims)
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.attention_plan.restype = Plan
        self._library.attention_arguments.restype = ctypes.c_uint64
        self._library.attention_tiles.restype = ctypes.c_uint64
        self._library.simt_last_error.restype = ctypes.c_char_p

    def refusal(self, problem: Problem) -> str | None:
        """Why no kernel takes the problem; None: one does."""
        text = ctypes.create_string_buffer(_TEXT_SIZE)
        taken = self._library.attention_supported(ctypes.byref(problem), text, _TEXT_SIZE)
        return None if taken else text.value.decode()

    def plan(self, problem: Problem) -> Plan:
        """Kernel and launch shape of a supported problem."""
        plan = self._library.attention_plan(ctypes.byref(problem))
        assert isinstance(plan, Plan)  # noqa: S101 - ctypes is untyped
        return plan

    def arguments(self, problem: Problem, buffers: Buffers) -> bytes:
        """The kernel's parameter."""
        size = self._library.attention_arguments(ctypes.byref(problem), ctypes.byref(buffers), None)
        into = ctypes.create_string_buffer(size)
        self._library.attention_arguments(ctypes.byref(problem), ctypes.byref(buffers), into)
        return into.raw

    def tiles(self, problem: Problem, mask: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Occupancy words of a mask.

        Raises:
            ValueError: a bit beyond the last key is set.
        """
        address = mask.ctypes.data_as(ctypes.c_void_p)
        size = self._library.attention_tiles(ctypes.byref(problem), address, None)
        if size == 0:
            raise ValueError("the mask has set bits beyond its last key")
        tiles = np.zeros(size, np.uint32)
        self._library.attention_tiles(
            ctypes.byref(problem), address, tiles.ctypes.data_as(ctypes.c_void_p)
        )
        return tiles

    def launch(self, problem: Problem, buffers: Buffers, seed: int = 0) -> None:
        """Runs the kernel; `seed` chooses the order of blocks, warps and lanes.

        Raises:
            LaunchError: refused, or the emulation found a fault.
        """
        self._library.simt_set_schedule(seed)
        status = self._library.attention_launch(ctypes.byref(problem), ctypes.byref(buffers), None)
        if status:
            error = self._library.simt_last_error().decode()
            raise LaunchError(f"status {status}: {error}" if error else f"status {status}")

    def execute(self, call: Call, seed: int = 0) -> None:
        """Runs a prepared call on its own arrays; arguments and errors as of `launch`."""
        self.launch(call.problem, call.buffers, seed)


def prepare(
    library: HostLibrary,
    tensors: Sequence[Array],
    spec: MaskedAttentionSpec,
    slack: tuple[int, int] = (0, 0),
) -> Call:
    """Structs and arrays of one launch; the output is filled with `UNWRITTEN`.

    Args:
        library: checks the problem and packs the tiles.
        tensors: one, two or three inputs as kernels/README.md lists them.
        spec: the node's attributes.
        slack: rows after every image, and elements after every row, of inputs and output, which
            hold `UNWRITTEN` too; elements as multiples of 16.

    Raises:
        UnsupportedError: no kernel takes the problem.
    """
    problem, places = _describe(tensors, spec, slack)
    refusal = library.refusal(problem)
    if refusal is not None:
        raise UnsupportedError(refusal)
    given = tuple(_spacious(each, slack) for each in tensors)
    mask = pack_mask(spec.allowed)
    tiles = library.tiles(problem, mask)
    slopes = np.array(spec.slopes, np.float32)
    shape = (problem.batch, problem.queries, problem.heads * problem.head_dim)
    room = _spacious(np.full(shape, UNWRITTEN[given[0].dtype], given[0].dtype), slack)
    q, k, v = (given[index].ctypes.data + offset for index, offset in places)
    buffers = Buffers(
        q, k, v, room.ctypes.data, mask.ctypes.data, tiles.ctypes.data,
        slopes.ctypes.data if spec.slopes else None,
    )  # fmt: skip
    out = room[:, : shape[1], : shape[2]]
    return Call(problem, buffers, given, tuple(places), mask, tiles, slopes, room, out)


def run_host(
    library: HostLibrary,
    tensors: Sequence[Array],
    spec: MaskedAttentionSpec,
    *,
    seed: int = 0,
    slack: tuple[int, int] = (0, 0),
) -> Array:
    """The operator's result [B, N, W] by the emulation, or wherever the library runs it.

    Args:
        library: runs it.
        tensors: one, two or three inputs as kernels/README.md lists them.
        spec: the node's attributes.
        seed: the order of blocks, warps and lanes; 0 is ascending.
        slack: see `prepare`.

    Raises:
        UnsupportedError: no kernel takes the problem.
        LaunchError: the emulation found a fault, or the kernel wrote beyond its output.
    """
    call = prepare(library, tensors, spec, slack)
    library.execute(call, seed)
    return _written(call, call.room)


def ptx_module(head_dims: Sequence[int], arch: str = "sm_87", folder: Path = FOLDER) -> Module:
    """The kernels' PTX for the interpreter; arguments as of `HostLibrary`.

    Raises:
        build.MissingToolError: no nvcc.
    """
    path = build.ptx(folder / "kernels.cu", arch, head_dims_define(head_dims), line_info=True)
    return Module.parse(path.read_text())


def run_ptx(
    library: HostLibrary,
    module: Module,
    tensors: Sequence[Array],
    spec: MaskedAttentionSpec,
    *,
    seed: int | None = None,
    slack: tuple[int, int] = (0, 0),
    profile: bool = False,
) -> tuple[Array, Report]:
    """The operator's result [B, N, W] by interpretation, with what it saw.

    Args:
        library: plans the launch; its head dims are those of `module`.
        module: see `ptx_module`.
        tensors: one, two or three inputs as kernels/README.md lists them.
        spec: the node's attributes.
        seed: the order of blocks and warps; None is lockstep.
        slack: see `prepare`.
        profile: count memory traffic too.

    Raises:
        UnsupportedError: no kernel takes the problem.
        LaunchError: the kernel wrote beyond its output.
        ViolationError: the kernel broke a rule of the programming model.
    """
    call = prepare(library, tensors, spec, slack)
    device = Device()
    given = [device.upload(each, f"input {index}") for index, each in enumerate(call.tensors)]
    out = device.upload(call.room, "out")
    buffers = Buffers(
        *(given[index] + offset for index, offset in call.places),
        out,
        device.upload(call.mask, "mask"),
        device.upload(call.tiles, "tiles"),
        device.upload(call.slopes, "slopes") if spec.slopes else None,
    )
    plan = library.plan(call.problem)
    report = interpret(
        module,
        plan.kernel.decode(),
        list(plan.grid),
        plan.threads,
        [library.arguments(call.problem, buffers)],
        shared_bytes=plan.shared_bytes,
        seed=seed,
        device=device,
        profile=profile,
    )
    return _written(call, device.download(out, call.room)), report


def _describe(
    tensors: Sequence[Array], spec: MaskedAttentionSpec, slack: tuple[int, int]
) -> tuple[Problem, list[tuple[int, int]]]:
    """The problem, and for query, key and value: which tensor, and how many bytes into it."""
    size = tensors[0].itemsize
    last = tensors[-1]
    width = last.shape[-1] // {1: 3, 2: 2, 3: 1}[len(tensors)]
    places = {
        1: [(0, 0), (0, width), (0, 2 * width)],
        2: [(0, 0), (1, 0), (1, width)],
        3: [(0, 0), (1, 0), (2, 0)],
    }[len(tensors)]
    head_dim = width // spec.heads
    groups, queries, keys = spec.mask_shape
    problem = Problem(
        type=_TYPES[last.dtype],
        fill=_FILLS[spec.fill],
        batch=last.shape[0],
        heads=spec.heads,
        head_dim=head_dim,
        queries=queries,
        keys=keys,
        mask_heads=groups,
        columns=spec.columns,
        scale=head_dim**-0.5 if spec.scale is None else spec.scale,
        out_batch=(queries + slack[0]) * (width + slack[1]),
        out_row=width + slack[1],
    )
    if spec.int8 is not None:
        problem.q_scale, problem.k_scale = spec.int8.q, spec.int8.k
        problem.v_scale, problem.out_scale = spec.int8.v, spec.int8.out
    for name, (index, _) in zip("qkv", places, strict=True):
        batch, tokens, columns = tensors[index].shape
        row = columns + slack[1]
        setattr(problem, f"{name}_row", row)
        shared = batch == 1 and last.shape[0] > 1
        setattr(problem, f"{name}_batch", 0 if shared else (tokens + slack[0]) * row)
    return problem, [(index, offset * size) for index, offset in places]


def _spacious(array: Array, slack: tuple[int, int]) -> Array:
    """A copy [B, T + slack, W + slack] in C order, 16-byte aligned.

    Its memory ends with it, so that AddressSanitizer sees the first byte beyond.
    """
    batch, tokens, columns = array.shape
    shape = (batch, tokens + slack[0], columns + slack[1])
    copy: Array = np.full(shape, UNWRITTEN[array.dtype], array.dtype)
    if copy.ctypes.data % 16:
        raise MemoryError("this platform's arrays do not start at multiples of 16 bytes")
    copy[:, :tokens, :columns] = array
    return copy


def _written(call: Call, room: Array) -> Array:
    """The result, when the slack around it is as it was."""
    out = room[:, : call.out.shape[1], : call.out.shape[2]].copy()
    outside = room.copy()
    outside[:, : out.shape[1], : out.shape[2]] = UNWRITTEN[room.dtype]
    if not np.array_equal(outside, np.full_like(room, UNWRITTEN[room.dtype]), equal_nan=True):
        raise LaunchError("the kernel wrote beyond its output")
    return out
