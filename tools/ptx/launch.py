"""Launching a kernel: arguments in, grid through the machine, arguments out, report."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.ptx import ops  # noqa: F401 - registers the instructions
from tools.ptx.dataflow import maybe_uninitialised
from tools.ptx.decode import Context, decode
from tools.ptx.device import Device
from tools.ptx.lanes import WARP
from tools.ptx.machine import Machine, Shape
from tools.ptx.ops.memory import state_space
from tools.ptx.ordering import Clocks, Releases
from tools.ptx.parser import Module
from tools.ptx.report import Report, Stop, ViolationError
from tools.ptx.spaces import SHARED_BASE, GlobalSpace, LocalSpace, SharedSpace
from tools.ptx.statistics import Statistics
from tools.ptx.syntax import Instruction, Kernel, Parameter, PtxError, Vector
from tools.ptx.types import TYPES, Array

Argument = Any  # an array, a number, bytes or a ctypes Structure
Dim = int | Sequence[int]

_LANES_TOGETHER = 2048  # blocks run side by side up to this many lanes, where no seed is given
_RESERVED_SHARED = 227 * 1024  # the most that a block can have, of any architecture here


def launch(
    module: Module,
    name: str,
    grid: Dim,
    threads: Dim,
    arguments: Sequence[Argument],
    *,
    shared_bytes: int = 0,
    seed: int | None = None,
    device: Device | None = None,
    races: bool = True,
    profile: bool = False,
    budget: int = 20_000_000,
    raises: bool = True,
) -> Report:
    """Runs a kernel and returns what it did.

    arguments: an array is copied to the device and back, into the same array; a number is a scalar
    (a device pointer is one); bytes and ctypes structures are struct parameters.
    shared_bytes: dynamic shared memory per block.
    seed: None runs warps and blocks in lockstep as far as they go together, which is fast; a number
    shuffles the order of warps, and of blocks where they meet through atomics.
    profile: count memory traffic too. budget: instructions, summed over warps.
    raises: ViolationError at the end if there were violations; else they are in the report.
    """
    kernel = module.kernel(name)
    device = device or Device()
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    data, offsets, addresses = _pack(kernel, arguments, device)
    symbols = _place_globals(module, kernel, device)
    static = _place_shared(module, kernel, symbols)
    total_shared = static + shared_bytes
    if total_shared > _RESERVED_SHARED:
        raise PtxError(f"{total_shared} bytes of shared memory; no device has more than 232448")
    shape = _shape(kernel, grid, threads)
    statistics = Statistics()
    grid_warps = shape.blocks * shape.warps
    clocks = Clocks(shape.together, shape.warps, grid_warps, races and _has_fences(kernel))
    machine = Machine(
        shape,
        clocks=clocks,
        releases=Releases(grid_warps),
        statistics=statistics,
        seed=seed,
        budget=budget,
        profile=profile,
        blocks_meet=_has_global_atomics(kernel),
    )
    global_space = GlobalSpace(machine, clocks, device, _granule(kernel, "global"), races=races)
    shared = SharedSpace(
        machine, clocks, shape.together, total_shared, _granule(kernel, "shared"), races=races
    )
    local_size = _place_local(kernel, symbols)
    local = LocalSpace(machine, clocks, machine.lane_count, local_size)
    specials = _Specials(shape, total_shared)
    context = Context(
        kernel,
        machine,
        specials=specials.values,
        symbols=symbols | offsets,
        parameters=offsets,
        parameter_data=data,
        global_space=global_space,
        shared=shared,
        local=local,
    )
    tracker = decode(context, maybe_uninitialised(kernel))
    batches = list(range(0, shape.blocks, shape.together))
    if seed is not None:
        machine.random.shuffle(batches)
    try:
        with np.errstate(all="ignore"):
            for first in batches:
                clocks.reset(first)
                specials.begin(first)
                for part in (shared, local, context.async_copies, tracker):
                    part.reset()
                machine.run_batch(first)
    except Stop:
        pass  # recorded
    for array, address in zip(arrays, addresses, strict=True):
        array[...] = device.download(address, array)
    _finish(machine, global_space, kernel)
    report = Report(name, machine.recorder.violations, statistics, machine.recorder.counts)
    if raises and report.violations:
        raise ViolationError(report)
    return report


def _dimensions(value: Dim, what: str) -> tuple[int, int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    if not 1 <= len(numbers) <= 3 or any(number < 1 for number in numbers):
        raise PtxError(f"{what} {value!r}: one to three numbers of at least 1")
    x, y, z = (*numbers, 1, 1)[:3]
    return x, y, z


def _shape(kernel: Kernel, grid: Dim, threads: Dim) -> Shape:
    grid3, block = _dimensions(grid, "grid"), _dimensions(threads, "threads")
    count = block[0] * block[1] * block[2]
    limit = 1024
    for directive in ("maxntid", "reqntid"):
        if directive in kernel.directives:
            numbers = [int(n) for n in kernel.directives[directive].replace(",", " ").split()]
            limit = int(np.prod(numbers))
            if directive == "reqntid" and count != limit:
                raise PtxError(f"{kernel.name} needs {limit} threads per block, not {count}")
    if count > limit:
        raise PtxError(f"{count} threads per block; {kernel.name} allows {limit}")
    padded = -(-count // WARP) * WARP
    blocks = grid3[0] * grid3[1] * grid3[2]
    together = max(1, min(blocks, _LANES_TOGETHER // padded))
    return Shape(grid3, block, together)


def _pack(
    kernel: Kernel, arguments: Sequence[Argument], device: Device
) -> tuple[bytes, dict[str, int], list[int]]:
    """The parameters' bytes, each one's offset, and the device addresses of the arrays."""
    if len(arguments) != len(kernel.parameters):
        raise PtxError(
            f"{kernel.name} takes {len(kernel.parameters)} arguments, not {len(arguments)}"
        )
    data = bytearray()
    offsets: dict[str, int] = {}
    addresses: list[int] = []
    for parameter, argument in zip(kernel.parameters, arguments, strict=True):
        data += bytes(-len(data) % parameter.align)
        offsets[parameter.name] = len(data)
        if isinstance(argument, np.ndarray):
            if parameter.type not in ("u64", "s64", "b64"):
                raise PtxError(f"{parameter.name} is no pointer, but an array was given")
            addresses.append(device.upload(argument, f"argument {parameter.name}"))
            data += _argument_bytes(parameter, addresses[-1])
        else:
            data += _argument_bytes(parameter, argument)
    return bytes(data), offsets, addresses


def _argument_bytes(parameter: Parameter, argument: Argument) -> bytes:
    if isinstance(argument, bytes | bytearray | ctypes.Structure):
        raw = bytes(argument)
        if len(raw) != parameter.size:
            raise PtxError(f"{parameter.name} has {parameter.size} bytes, not {len(raw)}")
        return raw
    if parameter.type is None:
        raise PtxError(f"{parameter.name} is a struct: give bytes or a ctypes structure")
    dtype = TYPES[parameter.type]
    try:
        value = np.asarray(argument).astype(dtype)
        exact = dtype.kind == "f" or int(value) == int(argument)
    except (OverflowError, ValueError, TypeError) as error:
        raise PtxError(f"{parameter.name} is .{parameter.type}: {argument!r}: {error}") from None
    if isinstance(argument, float) and dtype.kind != "f" and dtype.itemsize == 4:
        return np.float32(argument).tobytes()  # `.b32` parameters may be floats
    if not exact:
        raise PtxError(f"{parameter.name} is .{parameter.type}, which cannot hold {argument!r}")
    return value.tobytes()


def _place_globals(module: Module, kernel: Kernel, device: Device) -> dict[str, int]:
    symbols = {}
    for variable in [*module.variables.values(), *kernel.variables.values()]:
        if variable.space in ("global", "const") and variable.size is not None:
            initial = variable.initial or bytes(variable.size)
            symbols[variable.name] = device.upload(
                np.frombuffer(initial, np.uint8), f"variable {variable.name}"
            )
    return symbols


def _place_shared(module: Module, kernel: Kernel, symbols: dict[str, int]) -> int:
    """Lays out shared variables: static ones first, all dynamic ones together behind them."""
    top, dynamic_alignment = 0, 1
    dynamic = []
    for variable in [*module.variables.values(), *kernel.variables.values()]:
        if variable.space != "shared":
            continue
        if variable.size is None:
            dynamic.append(variable.name)
            dynamic_alignment = max(dynamic_alignment, variable.align)
            continue
        top = -(-top // variable.align) * variable.align
        symbols[variable.name] = SHARED_BASE + top
        top += variable.size
    if dynamic:
        top = -(-top // dynamic_alignment) * dynamic_alignment
    symbols.update(dict.fromkeys(dynamic, SHARED_BASE + top))
    return top


def _place_local(kernel: Kernel, symbols: dict[str, int]) -> int:
    top = 0
    for variable in kernel.variables.values():
        if variable.space == "local":
            top = -(-top // variable.align) * variable.align
            symbols[variable.name] = top
            top += variable.size or 0
    return top


def _has_fences(kernel: Kernel) -> bool:
    words = {"membar", "fence", "acquire", "release", "acq_rel"}
    return any(words & set(item.parts) for item in kernel.instructions)


def _has_global_atomics(kernel: Kernel) -> bool:
    return any(
        item.parts[0] in ("atom", "red") and state_space(item) != "shared"
        for item in kernel.instructions
    )


def _granule(kernel: Kernel, space: str) -> int:
    """The size of the smallest access to a memory: what its shadow needs to tell apart."""
    sizes = [_access_size(item, space) for item in kernel.instructions]
    return min((size for size in sizes if size), default=4)


def _access_size(item: Instruction, space: str) -> int:
    name = item.parts[0]
    if name in ("ldmatrix", "stmatrix"):
        return 16 if space == "shared" else 0
    if name == "cp":
        # a variable source size may be any number of bytes
        return 4 if len(item.operands) > 2 else 0
    if name not in ("ld", "ldu", "st", "atom", "red") or "param" in item.parts:
        return 0
    named = state_space(item)
    if named not in (space, "generic") and (named, space) != ("const", "global"):
        return 0
    sizes = [len(o.items) for o in item.operands if isinstance(o, Vector)]
    return TYPES[item.parts[-1]].itemsize * (sizes[0] if sizes else 1)


class _Specials:
    """The special registers, per lane of a batch."""

    def __init__(self, shape: Shape, shared_bytes: int) -> None:
        self.shape = shape
        lanes = np.arange(shape.together * shape.warps * WARP)
        self.slot = lanes // (shape.warps * WARP)
        thread = lanes % (shape.warps * WARP)
        x, y, _ = shape.block
        one = np.ones_like(lanes)
        zero = np.zeros_like(lanes)
        self.values: dict[str, Array] = {
            "%tid.x": thread % x,
            "%tid.y": thread // x % y,
            "%tid.z": thread // (x * y),
            "%laneid": thread % WARP,
            "%warpid": thread // WARP,
            "%smid": zero,
            "%clock": zero,
            "%clock64": zero,
            "%lanemask_eq": 1 << (thread % WARP),
            "%lanemask_lt": (1 << (thread % WARP)) - 1,
            "%lanemask_le": (2 << (thread % WARP)) - 1,
            "%lanemask_gt": 0xFFFFFFFF ^ ((2 << (thread % WARP)) - 1),
            "%lanemask_ge": 0xFFFFFFFF ^ ((1 << (thread % WARP)) - 1),
            "%dynamic_smem_size": one * shared_bytes,
            "%total_smem_size": one * shared_bytes,
        }
        for axis, name in enumerate("xyz"):
            self.values[f"%ntid.{name}"] = one * shape.block[axis]
            self.values[f"%nctaid.{name}"] = one * shape.grid[axis]
            self.values[f"%ctaid.{name}"] = zero.copy()

    def begin(self, first_block: int) -> None:
        """Sets blockIdx for the batch that begins with this block."""
        number = first_block + self.slot
        x, y, _ = self.shape.grid
        self.values["%ctaid.x"][:] = number % x
        self.values["%ctaid.y"][:] = number // x % y
        self.values["%ctaid.z"][:] = number // (x * y)


def _finish(machine: Machine, memory: GlobalSpace, kernel: Kernel) -> None:
    statistics = machine.statistics
    for item, count in zip(kernel.instructions, machine.executed.tolist(), strict=True):
        if count:
            statistics.opcodes[item.opcode] = statistics.opcodes.get(item.opcode, 0) + count
    if machine.profile:
        for store, what in ((False, "read"), (True, "written")):
            unique = int(memory.touched[store].sum()) * memory.granule
            statistics.unique_bytes[what] = unique
