"""Which reads of registers may find nothing: definite assignment over the control-flow graph.

Compilers write nearly every register before they read it on every path. Proving that once per
kernel leaves only the doubtful reads to be checked while the kernel runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from tools.ptx.syntax import (
    Address,
    Instruction,
    Kernel,
    Negated,
    Operand,
    Pair,
    Register,
    Symbol,
    Vector,
)

# Instructions whose first operand is read, or is no register at all.
_NO_DESTINATION = {
    *("st", "red", "bar", "barrier", "bra", "ret", "exit", "trap", "brkpt", "membar", "fence"),
    *("cp", "stmatrix", "prefetch", "prefetchu", "discard", "applypriority", "nanosleep"),
    *("griddepcontrol", "pmevent"),
}


def registers_in(operand: Operand) -> Iterator[str]:
    """Names of the registers in an operand."""
    if isinstance(operand, Register):
        yield operand.name
    elif isinstance(operand, Address):
        if isinstance(operand.base, Register):
            yield operand.base.name
    elif isinstance(operand, Vector):
        for item in operand.items:
            yield from registers_in(item)
    elif isinstance(operand, Pair):
        yield from registers_in(operand.first)
        yield from registers_in(operand.second)
    elif isinstance(operand, Negated):
        yield from registers_in(operand.operand)


def reads_and_writes(instruction: Instruction) -> tuple[set[str], set[str]]:
    """Registers that an instruction reads and writes; its guard is among the reads."""
    operands = list(instruction.operands)
    writes: set[str] = set()
    if operands and instruction.parts[0] not in _NO_DESTINATION:
        writes = set(registers_in(operands.pop(0)))
    reads = {name for operand in operands for name in registers_in(operand)}
    if instruction.guard is not None:
        reads.add(instruction.guard.name)
    return reads, writes


def is_copy(instruction: Instruction) -> bool:
    """Whether an instruction only copies one register to another."""
    return instruction.parts[0] == "mov" and all(
        isinstance(operand, Register) for operand in instruction.operands
    )


def _successors(kernel: Kernel, number: int) -> list[int]:
    item = kernel.instructions[number]
    following = [number + 1] if number + 1 < len(kernel.instructions) else []
    if item.parts[0] == "bra":
        target = item.operands[0]
        end = len(kernel.instructions)
        there = kernel.labels.get(target.name, end) if isinstance(target, Symbol) else end
        jump = [there] if there < len(kernel.instructions) else []
        return jump if item.guard is None else jump + following
    if item.parts[0] in ("ret", "exit", "trap") and item.guard is None:
        return []
    return following


@functools.lru_cache(maxsize=64)
def effects(kernel: Kernel) -> list[tuple[set[str], set[str]]]:
    """`reads_and_writes` of all instructions."""
    return [reads_and_writes(item) for item in kernel.instructions]


@functools.lru_cache(maxsize=64)
def maybe_uninitialised(kernel: Kernel) -> dict[int, list[str]]:
    """By instruction: the registers it reads that some path may not have written."""
    bit = {name: 1 << position for position, name in enumerate(kernel.registers)}
    everything = (1 << len(bit)) - 1
    transfer = []
    for item, (reads, writes) in zip(kernel.instructions, effects(kernel), strict=True):
        # a guarded instruction may write nothing
        surely = 0 if item.guard is not None else sum(bit[name] for name in writes)
        transfer.append((sum(bit[name] for name in reads), surely, is_copy(item)))
    assigned = [everything] * len(transfer)  # what is surely written before each instruction
    visited = [False] * len(transfer)
    pending = [0] if transfer else []
    if transfer:
        assigned[0] = 0
    while pending:
        number = pending.pop()
        visited[number] = True
        read_bits, write_bits, copy = transfer[number]
        after = assigned[number] | write_bits
        if copy and read_bits & ~assigned[number]:  # a copy of nothing is nothing
            after &= ~write_bits
        for following in _successors(kernel, number):
            joined = assigned[following] & after
            if joined != assigned[following] or not visited[following]:
                assigned[following] = joined
                pending.append(following)
    return {
        number: sorted(name for name in reads if not bit[name] & assigned[number])
        for number, (reads, _) in enumerate(effects(kernel))
        if visited[number] and transfer[number][0] & ~assigned[number]
    }
