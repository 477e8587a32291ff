"""cp.async with its commit and waits."""

from __future__ import annotations

import numpy as np

from tools.ptx.decode import Context, instruction
from tools.ptx.lanes import Lanes
from tools.ptx.machine import Run
from tools.ptx.syntax import Instruction, Integer


@instruction("cp")
def build_copy(context: Context, item: Instruction) -> Run:
    """cp.async and its commit and wait."""
    if item.parts[1:2] != ("async",):
        raise ValueError("only cp.async")
    copies = context.async_copies
    if "commit_group" in item.parts:
        return copies.commit
    if "wait_all" in item.parts:

        def wait_all(lanes: Lanes) -> None:
            copies.commit(lanes)
            copies.wait(lanes, 0)

        return wait_all
    if "wait_group" in item.parts:
        count = item.operands[0]
        if not isinstance(count, Integer):
            raise ValueError("cp.async.wait_group takes a literal")
        pending = count.value
        return lambda lanes: copies.wait(lanes, pending)
    known = ("ca", "cg", "shared", "global", "L2")
    unknown = [part for part in item.parts[2:] if part.split("::")[0] not in known]
    if unknown:
        raise ValueError(f"modifier .{unknown[0]}")
    return _build_issue(context, item)


def _build_issue(context: Context, item: Instruction) -> Run:
    size_operand = item.operands[2]
    if not isinstance(size_operand, Integer) or size_operand.value not in (4, 8, 16):
        raise ValueError("the size of a cp.async is 4, 8 or 16")
    size = size_operand.value
    target, source = context.address(item.operands[0]), context.address(item.operands[1])
    if len(item.operands) > 4:
        raise ValueError("cache policies")
    # A source size below `size` fills the rest with zeros; those bytes are not read.
    wanted = context.read(item.operands[3], "u32") if len(item.operands) > 3 else None
    copies = context.async_copies
    shared, memory = context.shared, context.global_space

    def run(lanes: Lanes) -> None:
        places, good = shared.check(lanes, target(lanes), size, item)
        where = source(lanes)
        data = np.zeros((lanes.count, size), np.uint8)
        read = np.full(lanes.count, size, np.int64)
        if wanted is not None:
            read = np.minimum(read, np.broadcast_to(wanted(lanes.index), read.shape))
        for amount in np.unique(read[read > 0]).tolist():
            chosen = read == amount
            some = Lanes(lanes.ids[chosen])
            width = amount if amount in (4, 8, 16) else 1
            for part in range(0, amount, width):
                at = where[chosen] + np.uint64(part)
                data[chosen, part : part + width] = memory.read(
                    some, at, np.dtype(np.uint8), width, item
                )
        shared.count(lanes.ids, places, size, item, store=True)
        if good is None:
            copies.issue(item, lanes, places, data)
            return
        fewer = lanes.where(good)
        if fewer is not None:
            copies.issue(item, fewer, places[good], data[good])

    return run
