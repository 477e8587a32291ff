"""Control flow, barriers and fences."""

from __future__ import annotations

import numpy as np

from tools.ptx.decode import Context, instruction
from tools.ptx.lanes import WARP, Lanes
from tools.ptx.machine import Control, Run, Step
from tools.ptx.syntax import Instruction, Symbol
from tools.ptx.types import Array


def _nothing(lanes: Lanes) -> None:
    return None


@instruction("bra")
def build_branch(context: Context, item: Instruction) -> Step:
    """Jumps; guarded, it splits the lanes."""
    target = item.operands[0]
    if not isinstance(target, Symbol) or target.name not in context.kernel.labels:
        raise ValueError("unknown label")
    there = context.kernel.labels[target.name]
    return Step(item, _nothing, Control.BRANCH, target=there)


@instruction("ret", "exit")
def build_exit(context: Context, item: Instruction) -> Step:
    """Ends the thread: kernels call no functions here, so ret does too."""
    return Step(item, _nothing, Control.EXIT)


@instruction("trap", "brkpt")
def build_trap(context: Context, item: Instruction) -> Step:
    """Stops the launch."""
    return Step(item, _nothing, Control.TRAP)


@instruction("bar", "barrier")
def build_barrier(context: Context, item: Instruction) -> Step | Run:
    """bar.sync, bar.arrive, bar.warp.sync."""
    words = [part for part in item.parts[1:] if part not in ("cta", "aligned")]
    if words == ["warp", "sync"]:
        return _warp_barrier(context, item)
    if words not in (["sync"], ["arrive"]):
        raise ValueError("barrier")
    reads = [context.read(operand, "u32") for operand in item.operands]

    def which(lanes: Lanes) -> tuple[Array, Array]:
        ids = np.asarray(reads[0](lanes.index))
        counts = reads[1](lanes.index) if len(reads) > 1 else np.uint32(0)
        return ids, np.asarray(counts)

    return Step(item, _nothing, Control.BARRIER, barrier=which, arrive_only=words == ["arrive"])


def _warp_barrier(context: Context, item: Instruction) -> Step:
    members = context.read(item.operands[0], "u32")
    machine = context.machine

    def run(lanes: Lanes) -> None:
        # Orders memory only where all of the warp's living lanes take part: see the README.
        alive = machine.alive.reshape(-1, WARP)[lanes.warps].sum(axis=1)
        whole = lanes.warps[lanes.mask().sum(axis=1) == alive]
        machine.clocks.sync_warps(whole)

    def mask(lanes: Lanes) -> Array:
        named = np.broadcast_to(members(lanes.index), (lanes.count,))
        return alive_members(context, lanes, named)

    return Step(item, run, Control.COLLECTIVE, members=mask)


def alive_members(context: Context, lanes: Lanes, mask: Array) -> Array:
    """A member mask without lanes that exited: full masks are used in partly empty warps."""
    alive = context.machine.alive.reshape(-1, WARP)[lanes.ids // WARP]
    bits = (alive.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(axis=1)
    members: Array = mask & bits.astype(np.uint32)
    return members


@instruction("membar", "fence")
def build_fence(context: Context, item: Instruction) -> Run:
    """Fences; only those of device or system scope order accesses between blocks."""
    words = set(item.parts[1:])
    known = {"gl", "sys", "gpu", "cta", "cluster", "sc", "acq_rel"}
    if words - known:
        raise ValueError(f"modifier .{sorted(words - known)[0]}")
    if not words & {"gl", "gpu", "sys"}:
        return _nothing
    clocks = context.machine.clocks
    return lambda lanes: clocks.fence(lanes.warps)


@instruction("griddepcontrol", "nanosleep", "pmevent")
def build_hint(context: Context, item: Instruction) -> Run:
    """What only concerns timing or other launches."""
    return _nothing
