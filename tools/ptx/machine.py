"""A batch of blocks in execution: registers, schedule, barriers, divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from tools.ptx.lanes import WARP, Lanes
from tools.ptx.ordering import Clocks, Releases
from tools.ptx.report import Kind, Recorder, Stop, Violation
from tools.ptx.statistics import Statistics
from tools.ptx.syntax import Instruction
from tools.ptx.types import Array

Run = Callable[[Lanes], None]

_LONGEST_TURN = 64  # instructions that a warp of a seeded schedule runs before another may


def _no_members(lanes: Lanes) -> Array:
    raise NotImplementedError("not a collective")


def _no_barrier(lanes: Lanes) -> tuple[Array, Array]:
    raise NotImplementedError("not a barrier")


class Control(Enum):
    """What an instruction does to the flow of control."""

    NEXT = auto()
    COLLECTIVE = auto()  # waits for the lanes of its member mask
    BRANCH = auto()
    EXIT = auto()
    BARRIER = auto()
    TRAP = auto()


@dataclass
class Step:
    """One decoded instruction."""

    instruction: Instruction
    run: Run
    control: Control = Control.NEXT
    before: Run | None = None  # a check of the operands, guard included
    guard: Array | None = None  # the predicate register, bool per lane
    target: int = -1  # of a branch
    members: Callable[[Lanes], Array] = _no_members  # of a collective: the mask in each lane
    barrier: Callable[[Lanes], tuple[Array, Array]] = _no_barrier  # ids, thread counts (0: all)
    arrive_only: bool = False


@dataclass(frozen=True)
class Shape:
    """Grid and block of a launch, and how many blocks run side by side."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    together: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def warps(self) -> int:
        """Warps of a block; the last may be partly empty."""
        return -(-self.threads // WARP)

    @property
    def blocks(self) -> int:
        """Blocks of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def block_index(self, number: int) -> tuple[int, int, int]:
        """blockIdx of the block of that number."""
        x, y, _ = self.grid
        return number % x, number // x % y, number // (x * y)


class Strand:
    """Lanes that the scheduler moves together; see `Machine.run_batch`.

    ready maps the index of the next instruction to the lanes there. The lowest index goes first:
    that is where diverged lanes meet again.
    """

    def __init__(self) -> None:
        self.ready: dict[int, Array] = {}
        self.stuck: dict[int, Array] = {}  # at a collective whose other lanes are elsewhere

    def add(self, pc: int, ids: Array) -> None:
        """Puts lanes at an instruction, beside those that are there already."""
        waiting = self.stuck.pop(pc, None)
        if waiting is not None:
            ids = np.sort(np.concatenate([waiting, ids]))
        there = self.ready.get(pc)
        self.ready[pc] = ids if there is None else np.sort(np.concatenate([there, ids]))


class Machine:
    """Runs batches of blocks. The decoder binds instructions to its registers and memories."""

    def __init__(
        self,
        shape: Shape,
        *,
        clocks: Clocks,
        releases: Releases,
        statistics: Statistics,
        seed: int | None,
        budget: int,
        profile: bool,
        blocks_meet: bool = False,
    ) -> None:
        self.shape = shape
        self.clocks = clocks
        self.releases = releases
        self.recorder = Recorder()
        self.statistics = statistics
        self.seed = seed
        self.budget = budget
        self.profile = profile
        self.blocks_meet = blocks_meet  # through atomics: then the order of blocks matters too
        self.lane_count = shape.together * shape.warps * WARP
        self.steps: list[Step] = []
        self.executed = np.zeros(0, np.int64)  # per instruction, in warps
        self.first_block = 0
        self.alive = np.zeros(self.lane_count, bool)
        self.waiting = np.full(self.lane_count, -1)  # the barrier's id, -1: at none
        self.waiting_pc = np.zeros(self.lane_count, np.int64)
        self.arrived: dict[tuple[int, int], Array] = {}  # (slot, id): lanes that only arrived
        self.strands: list[Strand] = []
        # Without a seed it only orders the lanes that meet in one atomic instruction.
        self.random = np.random.default_rng(0 if seed is None else seed)

    # --- violations

    def violate(self, kind: Kind, message: str, instruction: Instruction, lane: int) -> None:
        """Records a violation by a lane of the batch."""
        per_block = self.shape.warps * WARP
        block = self.shape.block_index(self.first_block + lane // per_block)
        inside = lane % per_block
        self.recorder.add(
            Violation(kind, message, instruction, block, inside // WARP, inside % WARP)
        )

    def fail(self, kind: Kind, message: str, instruction: Instruction, lane: int) -> Stop:
        """Records a violation that ends the launch; the caller raises the result."""
        self.violate(kind, message, instruction, lane)
        return Stop()

    # --- schedule

    def run_batch(self, first_block: int) -> None:
        """Runs the blocks from `first_block` on, as many as fit side by side, to their end."""
        self.first_block = first_block
        count = min(self.shape.together, self.shape.blocks - first_block)
        per_block = self.shape.warps * WARP
        lanes = np.arange(count * per_block)
        lanes = lanes[lanes % per_block < self.shape.threads]
        self.alive[:] = False
        self.alive[lanes] = True
        self.waiting[:] = -1
        self.arrived.clear()
        self.statistics.blocks += count
        if self.seed is None:
            groups = [lanes]
        else:
            strands = self._strand_of(lanes)
            groups = [lanes[strands == number] for number in range(int(strands.max()) + 1)]
        self.strands = [Strand() for _ in groups]
        for strand, group in zip(self.strands, groups, strict=True):
            strand.add(0, group)
        while True:
            runnable = [strand for strand in self.strands if strand.ready]
            if not runnable:
                if not self.alive.any():
                    return
                raise self._deadlock()
            if self.seed is None:
                self._turn(runnable[0], 1 << 62)
            else:
                choice = runnable[int(self.random.integers(len(runnable)))]
                self._turn(choice, int(self.random.integers(1, _LONGEST_TURN)))

    def _strand_of(self, lanes: Array) -> Array:
        """With a seed: a strand per warp, or one for warps of the same number in all blocks."""
        warps: Array = lanes // WARP
        return warps if self.blocks_meet else warps % self.shape.warps

    def _turn(self, strand: Strand, limit: int) -> None:
        """Runs a strand for about `limit` instructions, or until none of its lanes can go on."""
        while strand.ready and limit > 0:
            pc = min(strand.ready)
            lanes = Lanes(strand.ready.pop(pc))
            stop = min(strand.ready, default=1 << 62)
            limit -= self._straight(strand, pc, lanes, min(stop, pc + limit))

    def _straight(self, strand: Strand, pc: int, lanes: Lanes, stop: int) -> int:
        """Runs from `pc` until the flow of control changes or `stop`; returns how many steps."""
        start = pc
        steps = self.steps
        while pc < stop:
            step = steps[pc]
            control = step.control
            if step.before is not None:
                step.before(lanes)
            if control is Control.NEXT:
                if step.guard is None:
                    step.run(lanes)
                else:
                    taken = step.guard[lanes.index]
                    if step.instruction.guard_negated:
                        taken = ~taken
                    some = lanes if taken.all() else lanes.where(taken)
                    if some is not None:
                        step.run(some)
                pc += 1
                continue
            self._account(start, pc + 1, lanes)
            self._control(strand, pc, step, lanes)
            return pc + 1 - start
        self._account(start, pc, lanes)
        strand.add(pc, lanes.ids)
        return max(1, pc - start)

    def _account(self, start: int, stop: int, lanes: Lanes) -> None:
        self.executed[start:stop] += lanes.warp_count
        self.budget -= (stop - start) * lanes.warp_count
        if self.budget < 0:
            step = self.steps[min(start, len(self.steps) - 1)]
            raise self.fail(
                Kind.BUDGET,
                "the launch used up its instruction budget: an endless loop, or give a larger one",
                step.instruction,
                int(lanes.ids[0]),
            )

    # --- control

    def _control(self, strand: Strand, pc: int, step: Step, lanes: Lanes) -> None:
        some: Lanes | None = lanes
        if step.guard is not None:
            taken = step.guard[lanes.index] ^ step.instruction.guard_negated
            rest = lanes.where(~taken)
            if rest is not None:
                strand.add(pc + 1, rest.ids)
                some = lanes.where(taken)
        if some is None:
            return
        if step.control is Control.BRANCH:
            step.run(some)
            strand.add(step.target, some.ids)
        elif step.control is Control.COLLECTIVE:
            self._collective(strand, pc, step, some)
        elif step.control is Control.EXIT:
            self._exit(strand, some)
        elif step.control is Control.BARRIER:
            self._arrive(strand, pc, step, some)
        else:
            raise self.fail(
                Kind.TRAP, "the kernel stopped itself", step.instruction, int(some.ids[0])
            )

    def _exit(self, strand: Strand, lanes: Lanes) -> None:
        self.alive[lanes.ids] = False
        for pc in list(strand.stuck):  # they may have waited for these lanes: look again
            strand.add(pc, strand.stuck.pop(pc))
        per_block = self.shape.warps * WARP
        for slot in np.unique(lanes.ids // per_block):
            self._release(int(slot))

    def _collective(self, strand: Strand, pc: int, step: Step, lanes: Lanes) -> None:
        """Runs a collective for the warps whose members are all here; the others wait for them."""
        mask = step.members(lanes)
        if lanes.full and np.all(mask == np.uint32(0xFFFFFFFF)):
            step.run(lanes)
            strand.add(pc + 1, lanes.ids)
            return
        here = lanes.mask()
        row = np.searchsorted(lanes.warps, lanes.ids // WARP)
        bits = np.broadcast_to(mask, lanes.ids.shape)
        wanted = (bits[:, None] >> np.arange(WARP, dtype=np.uint32)) & np.uint32(1) == 1
        lane = lanes.ids % WARP
        named = wanted[np.arange(lanes.count), lane]
        if not named.all():
            raise self.fail(
                Kind.DIVERGENCE,
                "a lane executes a collective whose member mask does not name it",
                step.instruction,
                int(lanes.ids[np.argmin(named)]),
            )
        absent = wanted & ~here[row]
        if absent.any():
            exited = absent & ~self.alive.reshape(-1, WARP)[lanes.ids // WARP]
            if exited.any():
                who = int(np.argmax(exited.any(axis=1)))
                raise self.fail(
                    Kind.DIVERGENCE,
                    f"the collective waits for lane {np.argmax(exited[who])}, which has exited",
                    step.instruction,
                    int(lanes.ids[who]),
                )
        complete = ~absent.any(axis=1)
        ready = lanes.where(complete)
        if ready is not None:
            step.run(ready)
            strand.add(pc + 1, ready.ids)
        waiting = lanes.where(~complete)
        if waiting is not None:
            strand.stuck[pc] = waiting.ids

    # --- barriers

    def _arrive(self, strand: Strand, pc: int, step: Step, lanes: Lanes) -> None:
        ids, counts = (np.broadcast_to(a, lanes.ids.shape) for a in step.barrier(lanes))
        per_block = self.shape.warps * WARP
        slots = np.unique(lanes.ids // per_block)
        if step.arrive_only:
            for slot in slots:
                mine = lanes.ids // per_block == slot
                key = (int(slot), int(ids[mine][0]))
                before = self.arrived.get(key, np.zeros(0, np.int64))
                self.arrived[key] = np.concatenate([before, lanes.ids[mine]])
            strand.add(pc + 1, lanes.ids)
        else:
            # The id and, above it, the number of threads to wait for: both must agree.
            self.waiting[lanes.ids] = ids.astype(np.int64) + (counts.astype(np.int64) << 8)
            self.waiting_pc[lanes.ids] = pc
        for slot in slots:
            self._release(int(slot))

    def _release(self, slot: int) -> None:
        """Lets the threads of a block go on that wait at a barrier which all have reached."""
        per_block = self.shape.warps * WARP
        ids = np.arange(slot * per_block, (slot + 1) * per_block)
        waiting = self.waiting[ids]
        for code in np.unique(waiting[waiting >= 0]):
            barrier, count = int(code) & 0xFF, int(code) >> 8
            there = ids[waiting == code]
            early = self.arrived.get((slot, barrier), np.zeros(0, np.int64))
            expected = count or int(self.alive[ids].sum())
            if len(there) + len(early) < expected:
                continue
            self._check_meeting(there, count)
            self.arrived.pop((slot, barrier), None)
            self.statistics.barriers += 1
            self.clocks.meet(np.unique(np.concatenate([there, early]) // WARP))
            self.waiting[there] = -1
            self._resume(there)

    def _check_meeting(self, ids: Array, count: int) -> None:
        """Threads that meet at a block-wide barrier should have come by the same instruction."""
        places = self.waiting_pc[ids]
        different = places != places[0]
        if different.any() and count == 0:
            lane = int(np.argmax(different))
            other = self.steps[int(places[0])].instruction
            self.violate(
                Kind.BARRIER,
                f"threads meet at different barriers: others wait at PTX line {other.line}",
                self.steps[int(places[lane])].instruction,
                int(ids[lane]),
            )

    def _resume(self, ids: Array) -> None:
        for pc in np.unique(self.waiting_pc[ids]):
            group = ids[self.waiting_pc[ids] == pc]
            if len(self.strands) == 1:
                self.strands[0].add(int(pc) + 1, group)
                continue
            strands = self._strand_of(group)
            for number in np.unique(strands):
                self.strands[int(number)].add(int(pc) + 1, group[strands == number])

    def _deadlock(self) -> Stop:
        """No lane can go on: says who waits where."""
        stuck = [(pc, ids) for strand in self.strands for pc, ids in strand.stuck.items()]
        kind = Kind.DIVERGENCE if stuck else Kind.DEADLOCK
        groups = list(stuck)
        at_barrier = np.nonzero(self.waiting >= 0)[0]
        groups += [
            (int(pc), at_barrier[self.waiting_pc[at_barrier] == pc])
            for pc in np.unique(self.waiting_pc[at_barrier])
        ]
        parts = [
            f"{len(ids)} threads wait at PTX line {self.steps[pc].instruction.line} "
            f"({self.steps[pc].instruction.opcode})"
            for pc, ids in groups
        ]
        pc, ids = groups[0]
        message = "no thread can go on: " + ", ".join(parts)
        return self.fail(kind, message, self.steps[pc].instruction, int(ids[0]))

    def resident(self) -> Lanes:
        """All lanes of the batch, those beyond the block's threads included."""
        return Lanes(np.arange(self.lane_count))
