"""Which memory accesses come before which: logical clocks of warps, and a shadow of memory.

Each warp has a clock that advances whenever it synchronises. An access is stamped with its warp and
the warp's time. Warp w may rely on an access that warp v made at time t only if `seen[w, v] > t`:
barriers raise `seen` for all that meet, __syncwarp raises a warp's view of itself (which orders its
lanes among each other). Between blocks it takes a fence, an atomic on a common location and another
fence. This is the happens-before relation of race detectors (Flanagan, Freund: FastTrack, 2009) at
the granularity of warps.
"""

from __future__ import annotations

import numpy as np

from tools.ptx.types import Array

# A stamp packs, from the lowest bit: 6 bits of lane (32: several lanes), 1 bit for atomics and
# other strong accesses, 27 bits of warp (numbered over the grid), the time. -1: no access yet.
_LANE = 63
SEVERAL = 32
_STRONG = 1 << 6
_WARP_SHIFT = 7
_TIME_SHIFT = 34
_WARP = (1 << 27) - 1


class Clocks:
    """Clocks of the warps of one batch of blocks.

    warps: warps per block. The first axis of every array is the warp's number in the batch, the
    second a warp's number in the same block, or in the grid for `known`.
    """

    def __init__(self, blocks: int, warps: int, grid_warps: int, fences: bool) -> None:
        self.warps = warps
        total = blocks * warps
        self.time = np.zeros(total, np.int64)
        self.seen = np.zeros((total, warps), np.int64)
        # Only kernels with fences and atomics order accesses of different blocks.
        self.fenced = np.zeros((total, warps), np.int64) if fences else None
        self.known = np.zeros((total, grid_warps), np.int64) if fences else None
        self.acquired = np.zeros((total, grid_warps), np.int64) if fences else None
        self.first_block = 0

    def reset(self, first_block: int) -> None:
        """Begins a new batch, whose first block has this number in the grid."""
        self.first_block = first_block
        for array in (self.time, self.seen, self.fenced, self.known, self.acquired):
            if array is not None:
                array[...] = 0

    def grid_warp(self, warps: Array) -> Array:
        """Numbers in the grid of warps of the batch."""
        return warps + self.first_block * self.warps

    def meet(self, warps: Array) -> None:
        """Warps of one block, by numbers in the batch, meet at a barrier."""
        columns = warps % self.warps
        joined = self.seen[warps].max(axis=0)
        joined[columns] = self.time[warps] + 1
        self.seen[warps] = joined
        self.time[warps] += 1
        for array in (self.fenced, self.known, self.acquired):
            if array is not None:
                array[warps] = array[warps].max(axis=0)

    def sync_warps(self, warps: Array) -> None:
        """__syncwarp in each of `warps`."""
        self.time[warps] += 1
        self.seen[warps, warps % self.warps] = self.time[warps]

    def fence(self, warps: Array) -> None:
        """A fence of device scope: releases what came before it, acquires what atomics brought."""
        if self.fenced is None or self.known is None or self.acquired is None:
            return
        covered = self.seen[warps].copy()
        covered[np.arange(len(warps)), warps % self.warps] = self.time[warps] + 1
        self.fenced[warps] = np.maximum(self.fenced[warps], covered)
        self.time[warps] += 1
        self.known[warps] = np.maximum(self.known[warps], self.acquired[warps])


class Releases:
    """What atomics on each location carry from block to block."""

    def __init__(self, grid_warps: int) -> None:
        self.grid_warps = grid_warps
        self._by_place: dict[int, Array] = {}

    def pass_through(self, clocks: Clocks, warps: Array, places: Array, acquire: bool) -> None:
        """Lanes of `warps` did an atomic each at `places`, in this order."""
        if clocks.fenced is None or clocks.acquired is None or clocks.known is None:
            return
        for warp, place in dict.fromkeys(zip(warps.tolist(), places.tolist(), strict=True)):
            carried = self._by_place.setdefault(place, np.zeros(self.grid_warps, np.int64))
            if acquire:
                clocks.acquired[warp] = np.maximum(clocks.acquired[warp], carried)
            block = (clocks.first_block + warp // clocks.warps) * clocks.warps
            own = carried[block : block + clocks.warps]
            np.maximum(own, clocks.fenced[warp], out=own)
            np.maximum(carried, clocks.known[warp], out=carried)


class Shadow:
    """The last accesses of each granule of a memory: one write, and reads by two warps.

    Two readers suffice: where a third one conflicts with a later write, so does one of the last
    two, unless only some of the block's warps met at a named barrier in between.
    """

    def __init__(self, granules: int) -> None:
        self.write = np.full(granules, -1, np.int64)
        self.read = np.full(granules, -1, np.int64)
        self.other_read = np.full(granules, -1, np.int64)

    def reset(self) -> None:
        """Forgets all accesses."""
        for array in (self.write, self.read, self.other_read):
            array[...] = -1

    def on_read(self, clocks: Clocks, ids: Array, index: Array, strong: bool) -> Array | None:
        """Lanes `ids` read granules `index` [lanes, granules each].

        Returns which lanes race with an earlier write, bool [lanes], or None where none does.
        """
        stamps, warps = _stamps(clocks, ids, strong)
        conflict = _unordered(clocks, self.write[index], ids, warps, strong)
        previous = self.read[index]
        mine = np.broadcast_to(stamps[:, None], index.shape)
        same_warp = (previous ^ mine) >> _WARP_SHIFT & _WARP == 0
        moved = (previous >= 0) & ~same_warp
        if moved.any():
            self.other_read[index[moved]] = previous[moved]
        # Another lane of this warp read it since the last __syncwarp: several lanes did.
        recent = same_warp & (previous >= 0)
        if recent.any():
            since = clocks.seen[warps, warps % clocks.warps][:, None]
            recent &= (previous >> _TIME_SHIFT >= since) & ((previous ^ mine) & _LANE != 0)
            mine = np.where(recent, (mine & ~_LANE) | SEVERAL, mine)
        self.read[index] = mine
        winner = self.read[index]
        lost = winner != mine  # of the lanes that read one granule together, the last was kept
        if lost.any():
            different = lost & ((winner ^ mine) >> _WARP_SHIFT & _WARP != 0)
            self.other_read[index[different]] = mine[different]
            together = index[lost & ~different]
            self.read[together] = (self.read[together] & ~_LANE) | SEVERAL
        return conflict

    def on_write(self, clocks: Clocks, ids: Array, index: Array, strong: bool) -> Array | None:
        """Lanes `ids` write granules `index`; returns which race, as `on_read` does.

        Lanes of one warp that write one granule in one instruction are not reported here.
        """
        stamps, warps = _stamps(clocks, ids, strong)
        conflict = None
        for table in (self.write, self.read, self.other_read):
            found = _unordered(clocks, table[index], ids, warps, strong)
            if found is not None:
                conflict = found if conflict is None else conflict | found
        mine = np.broadcast_to(stamps[:, None], index.shape)
        self.write[index] = mine
        if not strong:
            winner = self.write[index]
            other = (winner ^ mine) >> _WARP_SHIFT & _WARP != 0
            if other.any():
                found = other.any(axis=1)
                conflict = found if conflict is None else conflict | found
        return conflict


def _stamps(clocks: Clocks, ids: Array, strong: bool) -> tuple[Array, Array]:
    warps = ids // 32
    stamps = (clocks.time[warps] << _TIME_SHIFT) | (clocks.grid_warp(warps) << _WARP_SHIFT)
    return stamps | (ids % 32) | (_STRONG if strong else 0), warps


def _unordered(
    clocks: Clocks, stamps: Array, ids: Array, warps: Array, strong: bool
) -> Array | None:
    """Which lanes' accesses are not ordered after those of `stamps` [lanes, granules]."""
    there = stamps >= 0
    if not there.any():
        return None
    other = np.where(there, stamps >> _WARP_SHIFT & _WARP, 0)
    time = stamps >> _TIME_SHIFT
    local = other - clocks.first_block * clocks.warps
    warps = warps[:, None]
    same_block = local // clocks.warps == warps // clocks.warps
    seen = clocks.seen[warps, other % clocks.warps]
    if clocks.known is None:
        seen = np.where(same_block, seen, 0)
    else:
        seen = np.where(same_block, seen, clocks.known[warps, other])
    own = (local == warps) & (stamps & _LANE == (ids % 32)[:, None])
    conflict = there & (time >= seen) & ~own
    if strong:
        conflict &= stamps & _STRONG == 0
    lanes: Array = conflict.any(axis=1)
    return lanes if lanes.any() else None
