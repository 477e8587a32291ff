"""Instructions that compute each lane's result from the same lane's operands."""

from collections.abc import Callable
from typing import Any

from tools.ptx.decode import Context
from tools.ptx.lanes import Lanes
from tools.ptx.machine import Run
from tools.ptx.syntax import Instruction


def elementwise(
    context: Context,
    item: Instruction,
    function: Callable[..., Any],
    sources: list[str],
    destination: str,
) -> Run:
    """destination = function(sources...), with the PTX types of each."""
    if len(item.operands) != len(sources) + 1:
        raise ValueError(f"takes {len(sources) + 1} operands")
    out = context.write(item.operands[0], destination)
    reads = [
        context.read(operand, type_name)
        for operand, type_name in zip(item.operands[1:], sources, strict=True)
    ]

    def one(lanes: Lanes) -> None:
        index = lanes.index
        out[index] = function(first(index))

    def two(lanes: Lanes) -> None:
        index = lanes.index
        out[index] = function(first(index), second(index))

    def many(lanes: Lanes) -> None:
        index = lanes.index
        out[index] = function(*[read(index) for read in reads])

    first = reads[0]
    if len(reads) == 1:
        return one
    second = reads[1]
    return two if len(reads) == 2 else many


def modifiers(item: Instruction, allowed: str) -> set[str]:
    """The modifiers between the opcode's name and its last type; ValueError for unknown ones."""
    found = set(item.parts[1:-1])
    unknown = found - set(allowed.split())
    if unknown:
        raise ValueError(f"modifier .{sorted(unknown)[0]}")
    return found
