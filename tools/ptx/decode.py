"""Decoding: each instruction becomes a closure over the registers and memories of a machine.

Operands are resolved once per launch. What remains per instruction is a NumPy operation over the
lanes that execute it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tools.ptx.copies import AsyncCopies
from tools.ptx.dataflow import effects, is_copy
from tools.ptx.lanes import WARP, Lanes
from tools.ptx.machine import Machine, Run, Step
from tools.ptx.report import Kind
from tools.ptx.spaces import GlobalSpace, LocalSpace, SharedSpace, Space
from tools.ptx.syntax import (
    Address,
    FloatBits,
    Instruction,
    Integer,
    Kernel,
    Negated,
    Operand,
    PtxError,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from tools.ptx.types import TYPES, Array, destination_view, is_float, register_view, unsigned

Index = slice | Array
Read = Callable[[Index], Any]  # an operand's value in the lanes that an index selects
Builder = Callable[["Context", Instruction], Run | Step]

BUILDERS: dict[str, Builder] = {}


def instruction(*names: str) -> Callable[[Builder], Builder]:
    """Registers the builder of the instructions whose opcode begins with one of `names`."""

    def register(builder: Builder) -> Builder:
        BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return register


class Context:
    """What builders need: registers, symbols, memories, and how to read and write operands."""

    def __init__(
        self,
        kernel: Kernel,
        machine: Machine,
        *,
        specials: dict[str, Array],
        symbols: dict[str, int],
        parameters: dict[str, int],
        parameter_data: bytes,
        global_space: GlobalSpace,
        shared: SharedSpace,
        local: LocalSpace,
    ) -> None:
        self.kernel = kernel
        self.machine = machine
        self.specials = specials
        self.symbols = symbols
        self.parameters = parameters
        self.parameter_data = parameter_data
        self.global_space = global_space
        self.shared = shared
        self.local = local
        self.registers = {
            name: np.zeros(
                machine.lane_count,
                np.bool_ if type_name == "pred" else unsigned(TYPES[type_name].itemsize),
            )
            for name, type_name in kernel.registers.items()
        }
        self.async_copies = AsyncCopies(shared, machine.lane_count)

    def unknown(self, instruction: Instruction, why: str = "") -> PtxError:
        """The error for an instruction that this interpreter does not know."""
        return PtxError(
            f"PTX line {instruction.line}: not supported{': ' + why if why else ''}: "
            f"{instruction.text}"
        )

    def read(self, operand: Operand, type_name: str) -> Read:
        """How to read an operand as a type: lanes' index to values (a scalar for constants)."""
        if isinstance(operand, Register):
            return register_view(self.registers[operand.name], type_name).__getitem__
        if isinstance(operand, Special):
            return self._special(operand.name, type_name)
        if isinstance(operand, Negated):
            inner = self.read(operand.operand, "pred")
            return lambda index: ~inner(index)
        constant = self.constant(operand, type_name)
        return lambda index: constant

    def constant(self, operand: Operand, type_name: str) -> Any:
        """A literal or a symbol's address as a NumPy scalar of a type."""
        dtype = TYPES[type_name]
        if isinstance(operand, FloatBits):
            value = unsigned(operand.size).type(operand.bits)
            if operand.size == dtype.itemsize:
                return value.view(dtype)
            return value.view(np.float32 if operand.size == 4 else np.float64).astype(dtype)
        if isinstance(operand, Symbol):
            if operand.name not in self.symbols:
                raise PtxError(f"unknown name {operand.name!r}")
            return dtype.type(self.symbols[operand.name])
        if isinstance(operand, Integer):
            if dtype == np.bool_:
                return np.bool_(operand.value != 0)
            if is_float(type_name):
                return dtype.type(operand.value)
            wrapped = operand.value % (1 << 8 * dtype.itemsize)
            return unsigned(dtype.itemsize).type(wrapped).view(dtype)
        raise PtxError(f"{operand} is no value")

    def _special(self, name: str, type_name: str) -> Read:
        if name not in self.specials:
            raise PtxError(f"unknown special register {name}")
        values = self.specials[name]
        dtype = TYPES[type_name]
        return lambda index: values[index].astype(dtype)

    def write(self, operand: Operand, type_name: str) -> Array:
        """The array to assign results to: all lanes, seen as a type; scratch for `_`."""
        if isinstance(operand, Sink):
            return np.zeros(self.machine.lane_count, TYPES[type_name])
        if not isinstance(operand, Register):
            raise PtxError(f"{operand} is no destination")
        return destination_view(self.registers[operand.name], type_name)

    def rows(self, operand: Operand, type_name: str) -> Read:
        """Like `read`, but for whole warps: takes Lanes.rows, gives [warps, 32]."""
        if isinstance(operand, Register):
            view = register_view(self.registers[operand.name], type_name)
            return view.reshape(-1, WARP).__getitem__
        flat = self.read(operand, type_name)
        everything = slice(0, self.machine.lane_count)
        shape = (self.machine.lane_count // WARP, WARP)
        return lambda index: np.broadcast_to(
            np.broadcast_to(flat(everything), self.machine.lane_count).reshape(shape)[index],
            (len(np.arange(shape[0])[index]), WARP),
        )

    def rows_destination(self, operand: Operand, type_name: str) -> Array:
        """Like `write`, but seen as [warps, 32]."""
        return self.write(operand, type_name).reshape(-1, WARP)

    def address(self, operand: Operand) -> Callable[[Lanes], Array]:
        """How to compute [base + offset] in each lane, uint64."""
        if not isinstance(operand, Address):
            raise PtxError(f"{operand} is no address")
        offset = np.uint64(operand.offset % (1 << 64))
        if not isinstance(operand.base, Register):
            fixed = np.uint64(self.constant(operand.base, "u64")) + offset
            return lambda lanes: np.full(lanes.count, fixed, np.uint64)
        storage = self.registers[operand.base.name]
        if storage.dtype == np.uint64:
            return lambda lanes: storage[lanes.index] + offset
        narrow = np.uint32(operand.offset % (1 << 32))
        return lambda lanes: (storage[lanes.index] + narrow).astype(np.uint64)


def vector(operand: Operand) -> tuple[Operand, ...]:
    """The elements of {a, b}; a plain operand is its own only element."""
    return operand.items if isinstance(operand, Vector) else (operand,)


def space_of(context: Context, name: str) -> Space:
    """The memory that a state space names."""
    spaces: dict[str, Space] = {
        "global": context.global_space,
        "const": context.global_space,
        "shared": context.shared,
        "local": context.local,
    }
    return spaces[name]


def decode(context: Context, maybe_uninitialised: dict[int, list[str]]) -> Tracker:
    """All instructions of the kernel, decoded.

    maybe_uninitialised: by instruction, registers that it reads and that no path surely wrote; only
    those cost a check at run time.
    """
    tracker = Tracker(context, maybe_uninitialised)
    steps = []
    for number, item in enumerate(context.kernel.instructions):
        builder = BUILDERS.get(item.parts[0])
        if builder is None:
            raise context.unknown(item)
        try:
            built = builder(context, item)
        except (IndexError, KeyError, StopIteration, ValueError) as error:
            raise context.unknown(item, str(error)) from error
        except PtxError as error:
            if str(error).startswith("PTX line"):
                raise
            raise context.unknown(item, str(error)) from error
        step = built if isinstance(built, Step) else Step(item, built)
        if item.guard is not None:
            step.guard = context.registers[item.guard.name]
        tracker.attach(number, step)
        steps.append(step)
    context.machine.steps = steps
    context.machine.executed = np.zeros(len(steps), np.int64)
    return tracker


class Tracker:
    """Watches the few registers that the data-flow analysis could not prove to be written."""

    def __init__(self, context: Context, doubtful: dict[int, list[str]]) -> None:
        self.context = context
        self.doubtful = doubtful
        self.effects = effects(context.kernel)
        names = sorted({name for found in doubtful.values() for name in found})
        self.written = {name: np.zeros(context.machine.lane_count, bool) for name in names}

    def reset(self) -> None:
        """New threads: nothing is written."""
        for written in self.written.values():
            written[:] = False

    def attach(self, number: int, step: Step) -> None:
        """Adds what must happen before and after an instruction."""
        item = step.instruction
        doubtful = self.doubtful.get(number, [])
        _, writes = self.effects[number]
        marked = [self.written[name] for name in sorted(writes) if name in self.written]
        if is_copy(item):
            # Copying nothing is no use of it: compilers do that where a value does not matter.
            source = self.written[doubtful[0]] if doubtful else None
            if marked:
                step.run = _then(step.run, lambda lanes: _copy(marked[0], source, lanes))
            return
        if doubtful:
            step.before = lambda lanes: self._check(doubtful, item, lanes)
        if marked:
            step.run = _then(step.run, lambda lanes: _mark(marked, lanes))

    def _check(self, names: list[str], item: Instruction, lanes: Lanes) -> None:
        guard = item.guard.name if item.guard is not None else None
        for name in names:
            concerned: Lanes | None = lanes
            if guard is not None and name != guard:  # lanes that are switched off read nothing
                taken = self.context.registers[guard][lanes.index] ^ item.guard_negated
                concerned = lanes.where(taken)
            if concerned is None:
                continue
            written = self.written[name][concerned.index]
            if not written.all():
                lane = int(concerned.ids[np.argmin(written)])
                message = f"reads register {name} that this thread never wrote"
                self.context.machine.violate(Kind.UNINITIALISED, message, item, lane)


def _then(first: Run, second: Run) -> Run:
    def both(lanes: Lanes) -> None:
        first(lanes)
        second(lanes)

    return both


def _mark(written: list[Array], lanes: Lanes) -> None:
    for each in written:
        each[lanes.index] = True


def _copy(written: Array, source: Array | None, lanes: Lanes) -> None:
    written[lanes.index] = True if source is None else source[lanes.index]
